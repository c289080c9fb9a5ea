"""Clipping, noise and accounting around a strategy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flq.apps import ArrayRecord, ConfigRecord, Message
from flq.apps.clipping import clipped, noisy, update_norm
from flq.apps.privacy import GaussianPrivacyEvent, NeighboringRelation, PrivacyConfig, RdpAccountant, SamplingMethod
from flq.apps.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    FedMedian,
)
from flq.apps.strategy.privacy import noise_for_count
from flq.errors import StrategyError
from tests.unit.strategy_replies import Nodes, failed, record, replies, reply, train, values

START = record([0, 0])
SIZE = 120_000


def fixed(noise: float = 0.0, norm: float = 5.0, count: int = 2, **options: Any) -> Any:
    return DifferentialPrivacyServerSideFixedClipping(FedAvg(), noise, norm, count, **options)


def adaptive(noise: float = 0.0, count: int = 4, **options: Any) -> Any:
    return DifferentialPrivacyServerSideAdaptiveClipping(FedAvg(), noise, count, **options)


class TestClipping:
    @given(
        hnp.arrays(np.float32, 8, elements=st.floats(-1e3, 1e3, width=32)),
        hnp.arrays(np.float32, 8, elements=st.floats(-1e3, 1e3, width=32)),
        st.floats(0.01, 1e3),
    )
    @settings(deadline=None)
    def test_an_update_is_never_longer_and_keeps_its_direction(
        self, model: np.ndarray, start: np.ndarray, norm: float
    ) -> None:
        before, first = record(model[:5], model[5:]), record(start[:5], start[5:])
        after, was_clipped = clipped(before, first, norm)
        length = update_norm(before, first)
        assert update_norm(after, first) <= norm * (1 + 1e-5) + 1e-3
        assert was_clipped == (length > norm)
        if not was_clipped:
            assert after is before
            return
        update = np.concatenate([a.numpy() for a in after.values()]) - start
        np.testing.assert_allclose(update, (model - start) * (norm / length), rtol=1e-3, atol=1e-3)

    def test_known_answer_over_all_arrays(self) -> None:
        after, was_clipped = clipped(record([3, 0], [[4]]), record([0, 0], [[0]]), 2.5)
        assert was_clipped
        assert [a.numpy().tolist() for a in after.values()] == [[1.5, 0], [[2]]]

    def test_whole_numbers_are_rounded_towards_where_they_were(self) -> None:
        after, _ = clipped(record([9, -9], dtype=np.int64), record([0, 0], dtype=np.int64), 10)
        assert after["0"].numpy().tolist() == [7, -7]
        assert update_norm(after, record([0, 0], dtype=np.int64)) <= 10

    def test_what_is_not_finite_is_left_to_others(self) -> None:
        model = record([np.nan, 1])
        assert clipped(model, START, 1.0) == (model, False)

    def test_noise_is_gaussian_of_that_deviation(self) -> None:
        after = noisy(record(np.ones(SIZE)), 0.5, np.random.default_rng(1))["0"].numpy()
        noise = after - 1
        assert after.dtype == np.float32
        assert noise.std() == pytest.approx(0.5, rel=0.02)
        assert abs(noise.mean()) < 0.01
        assert (np.abs(noise) < 0.5).mean() == pytest.approx(0.6827, abs=0.01)
        model = record([1])
        assert noisy(model, 0.0, np.random.default_rng(1)) is model


class TestFixed:
    def test_updates_are_clipped_before_they_are_averaged(self) -> None:
        new = train(fixed(norm=5), record([1, 1]), replies([[7, 9], [1, 2]]))  # updates (6, 8) and (0, 1)
        assert values(new) == pytest.approx([1 + 3 / 2, 1 + (4 + 1) / 2])

    def test_the_noise_is_that_of_the_mean(self) -> None:
        strategy = fixed(noise=2.0, norm=3.0, count=4)
        new = train(strategy, record(np.zeros(SIZE)), replies(np.zeros((4, SIZE))))
        assert values(new).std() == pytest.approx(2.0 * 3.0 / 4, rel=0.02)

    def test_it_is_larger_where_fewer_replies_are_used(self, caplog: pytest.LogCaptureFixture) -> None:
        strategy = fixed(noise=2.0, norm=3.0, count=4)
        rows = [*np.zeros((2, SIZE)), np.full(SIZE, np.nan)]
        new = train(strategy, record(np.zeros(SIZE)), replies(rows))
        assert values(new).std() == pytest.approx(2.0 * 3.0 / 2, rel=0.02)
        assert "there are 3 replies, and num_sampled_clients is 4" in caplog.text
        assert "NaN" in caplog.text

    def test_nobody_can_tell_it_from_the_seed(self) -> None:
        found = []
        for _ in range(2):
            strategy = fixed(noise=1.0)
            strategy.seed = "7/0"
            found.append(values(train(strategy, START, replies([[1, 1]] * 2))))
        assert not np.array_equal(found[0], found[1])

    def test_every_round_has_its_own(self) -> None:
        strategy = fixed(noise=1.0)
        rounds = [values(train(strategy, START, replies([[1, 1]] * 2), number)) for number in (1, 2)]
        assert not np.array_equal(rounds[0], rounds[1])

    def test_an_error_leaves_the_round_out(self, caplog: pytest.LogCaptureFixture) -> None:
        assert train(fixed(), START, [*replies([[1, 1]] * 2), failed(9, "disk full")]) is None
        assert "node 9: disk full" in caplog.text
        assert "1 of 3 replies are errors, so the model stays as it is" in caplog.text
        assert train(fixed(), START, []) is None

    def test_another_model_than_was_sent_is_not_let_through_unclipped(self, caplog: pytest.LogCaptureFixture) -> None:
        answers = [reply(number, record([1e9, 1e9, 1e9])) for number in (2, 3, 4)]
        new = train(fixed(), START, [*answers, reply(5, record([3, 4]))])
        assert values(new) == pytest.approx([3, 4])
        assert "its arrays are not those that the node got" in caplog.text

    def test_client_side_the_norm_is_in_the_config_and_nothing_is_clipped_here(self) -> None:
        strategy = DifferentialPrivacyClientSideFixedClipping(FedAvg(), 0.0, 1.0, 2)
        config = ConfigRecord({"lr": 0.1})
        first, *_ = strategy.configure_train(1, START, config, Nodes())
        assert first.content["config"] == {"lr": 0.1, "clipping_norm": 1.0, "server-round": 1}
        assert config == {"lr": 0.1}
        assert values(train(strategy, START, replies([[30, 40]] * 2))) == pytest.approx([30, 40])

    def test_any_strategy_may_be_inside(self) -> None:
        strategy = DifferentialPrivacyServerSideFixedClipping(FedMedian(), 0.0, 5.0, 3)
        assert values(train(strategy, START, replies([[30, 40], [0, 1], [0, 0]]))) == pytest.approx([0, 1])

    def test_evaluation_is_that_of_the_strategy_inside(self) -> None:
        strategy = fixed()
        messages = list(strategy.configure_evaluate(1, START, ConfigRecord(), Nodes(3)))
        assert [message.metadata.dst_node_id for message in messages] == [2, 3, 4]
        assert strategy.aggregate_evaluate(1, [reply(2, record(), train_loss=0.5)]) == {"train_loss": 0.5}


class TestAdaptive:
    @pytest.mark.parametrize("target", [0.2, 0.5, 0.8])
    def test_the_norm_comes_to_where_that_part_is_clipped(self, target: float) -> None:
        strategy = adaptive(count=40, initial_clipping_norm=0.5, target_clipped_quantile=target, clip_norm_lr=0.3)
        norms = np.linspace(1, 11, 40)
        for server_round in range(1, 101):
            train(strategy, START, replies([[norm, 0] for norm in norms]), server_round)
        assert strategy.clipping_norm == pytest.approx(np.quantile(norms, 1 - target), rel=0.1)

    def test_known_answer(self) -> None:
        strategy = adaptive(initial_clipping_norm=2.0, target_clipped_quantile=0.5, clip_norm_lr=0.3)
        new = train(strategy, START, replies([[1, 0], [3, 0], [4, 0], [5, 0]]))
        assert values(new) == pytest.approx([(1 + 2 + 2 + 2) / 4, 0])
        assert strategy.clipping_norm == pytest.approx(2 * math.exp(0.3 * (0.75 - 0.5)))

    def test_the_noise_is_that_of_the_norm_that_was_clipped_by(self) -> None:
        strategy = adaptive(noise=1.0, count=4, initial_clipping_norm=2.0, clipped_count_stddev=5.0, clip_norm_lr=3.0)
        new = train(strategy, record(np.zeros(SIZE)), replies(np.zeros((4, SIZE))))
        of_model = (1 - 1 / 100) ** -0.5
        assert values(new).std() == pytest.approx(of_model * 2.0 / 4, rel=0.02)

    def test_client_side_the_nodes_tell_and_the_count_stays_secret(self) -> None:
        strategy = DifferentialPrivacyClientSideAdaptiveClipping(FedAvg(), 0.0, 4, initial_clipping_norm=2.0)
        first, *_ = strategy.configure_train(1, START, ConfigRecord(), Nodes())
        assert first.content["config"]["clipping_norm"] == 2.0
        answers = [reply(2 + bit, record([1, 1]), norm_bit=int(bit > 0)) for bit in range(4)]
        _, metrics = strategy.aggregate_train(1, answers)
        assert strategy.clipping_norm == pytest.approx(2 * math.exp(0.2 * (0.75 - 0.5)))
        assert metrics == {"train_loss": 1.0}
        assert all("norm_bit" in answer.content["metrics"] for answer in answers)

    def test_client_side_a_missing_mod_is_told(self) -> None:
        strategy = DifferentialPrivacyClientSideAdaptiveClipping(FedAvg(), 0.0, 2)
        with pytest.raises(StrategyError, match="node 2 has no 'norm_bit'") as caught:
            train(strategy, START, replies([[1, 1]] * 2))
        assert "adaptiveclipping_mod" in str(caught.value.hint)

    def test_noise_is_shared_with_the_count_as_in_the_paper(self, caplog: pytest.LogCaptureFixture) -> None:
        deviation, of_model = noise_for_count(1.0, 100, None)
        assert deviation == 5
        assert of_model**-2 + (2 * deviation) ** -2 == pytest.approx(1.0)
        assert noise_for_count(0.0, 100, None) == (0.0, 0.0)
        assert caplog.text == ""
        noise_for_count(1.0, 100, 0.55)
        assert "times as large" in caplog.text
        with pytest.raises(ValueError, match=r"clipped_count_stddev is 0\.5, which is too low"):
            noise_for_count(1.0, 10, None)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: fixed(noise=-1), "noise_multiplier is -1"),
        (lambda: fixed(norm=0), "clipping_norm is 0"),
        (lambda: fixed(count=0), "num_sampled_clients is 0"),
        (lambda: DifferentialPrivacyServerSideFixedClipping(None, 1, 1, 1), "a strategy is wrapped, not NoneType"),  # type: ignore[arg-type]
        (lambda: adaptive(initial_clipping_norm=0), "initial_clipping_norm is 0"),
        (lambda: adaptive(target_clipped_quantile=1.5), "target_clipped_quantile is 1.5"),
        (lambda: adaptive(clip_norm_lr=0), "clip_norm_lr is 0"),
        (lambda: adaptive(clipped_count_stddev=-1), "clipped_count_stddev is -1"),
    ],
)
def test_values_that_cannot_be_are_refused_at_once(make: Callable[[], object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make()


def test_clipping_needs_the_model_that_was_sent() -> None:
    with pytest.raises(StrategyError, match="configure_train has to be called before"):
        fixed().aggregate_train(1, replies([[1, 1]] * 2))


def config(**changes: Any) -> PrivacyConfig:
    given: dict[str, Any] = {
        "target_delta": 1e-5,
        "population_size": 100,
        "neighboring_relation": NeighboringRelation.ADD_OR_REMOVE_ONE,
        "sampling_method": SamplingMethod.NO_AMPLIFICATION,
        **changes,
    }
    return PrivacyConfig(**given)


EVENT = GaussianPrivacyEvent(1.0, 10, 100)


class TestAccountedTraining:
    def strategy(self, max_epsilon: float | None = None, count: int = 10, **options: Any) -> Any:
        inner = FedAvg(**options)
        accountant = RdpAccountant(config(max_epsilon=max_epsilon))
        return DifferentialPrivacyServerSideFixedClipping(inner, 1.0, 1.0, count, accountant=accountant)

    def test_each_release_counts(self) -> None:
        strategy = self.strategy()
        for server_round in (1, 2):
            train(strategy, START, replies([[0, 1]] * 10), server_round)
        spent = strategy.privacy_spent()
        assert spent.num_releases == 2
        other = RdpAccountant(config())
        other.compose(GaussianPrivacyEvent(1.0, 10, 100), 2)
        assert spent == other.get_privacy_spent()
        assert fixed().privacy_spent() is None

    @pytest.mark.parametrize(
        "answers",
        [
            [*replies([[0, 1]] * 9), failed(11)],
            replies([[0, 1]] * 9),
            replies([[0, 1]] * 10, weights=[1] * 9 + [2]),
        ],
        ids=["an error", "a reply less", "another weight"],
    )
    def test_what_is_not_accounted_for_is_not_released(self, answers: Sequence[Message]) -> None:
        strategy = self.strategy()
        assert train(strategy, START, answers) is None
        assert strategy.privacy_spent().num_releases == 0
        assert train(strategy, START, replies([[0, 1]] * 10), 2) is not None
        assert strategy.privacy_spent().num_releases == 1

    def test_the_run_ends_before_more_is_spent_than_may_be(self) -> None:
        strategy = self.strategy(max_epsilon=8.0)
        answers = replies([[0, 1]] * 10)
        affordable = next(n for n in range(1, 50) if strategy.accountant.would_exceed(EVENT, count=n)) - 1
        assert affordable > 1
        for server_round in range(1, affordable + 1):
            assert train(strategy, START, answers, server_round) is not None
        with pytest.raises(StrategyError, match="one more round would spend more privacy than may be spent"):
            train(strategy, START, answers, affordable + 1)
        assert strategy.privacy_spent().num_releases == affordable
        assert strategy.privacy_spent().epsilon <= 8.0

    def test_another_number_of_nodes_is_told(self) -> None:
        with pytest.raises(StrategyError, match="5 nodes are chosen for a round, and privacy is accounted for 10"):
            train(self.strategy(fraction_train=0.5), START, replies([[0, 1]] * 5))

    def test_the_count_survives_a_restart(self) -> None:
        strategy, again = self.strategy(), self.strategy()
        train(strategy, START, replies([[0, 1]] * 10))
        again.load_state(strategy.save_state())
        assert again.privacy_spent() == strategy.privacy_spent()

    def test_only_what_can_be_accounted_for_is(self) -> None:
        poisson = RdpAccountant(config(sampling_method=SamplingMethod.POISSON))
        plain = RdpAccountant(config())
        for make, told in (
            (lambda: fixed(noise=0.0, accountant=plain), "noise_multiplier must be positive"),
            (lambda: fixed(noise=1.0, accountant=poisson), "NO_AMPLIFICATION only"),
            (
                lambda: DifferentialPrivacyServerSideFixedClipping(FedMedian(), 1.0, 1.0, 2, accountant=plain),
                "aggregate as FedAvg does",
            ),
        ):
            with pytest.raises(ValueError, match=told):
                make()


class TestAccountant:
    def spend(self, noise: float, count: int = 1, sample: int = 10, **changes: Any) -> RdpAccountant:
        accountant = RdpAccountant(config(**changes))
        accountant.compose(GaussianPrivacyEvent(noise, sample, 100), count)
        return accountant

    @pytest.mark.parametrize("noise", [0.5, 1.0, 4.0])
    @pytest.mark.parametrize("delta", [1e-3, 1e-6])
    def test_is_a_tight_upper_bound_for_one_gaussian(self, noise: float, delta: float) -> None:
        # Balle and Wang (2018), theorem 8: the exact delta of the Gaussian mechanism at epsilon
        def phi(x: float) -> float:
            return math.erfc(-x / math.sqrt(2)) / 2

        epsilon = self.spend(noise).get_epsilon(delta)
        low, high = 0.0, epsilon * 2 + 1
        for _ in range(100):
            middle = (low + high) / 2
            exact = phi(0.5 / noise - middle * noise) - math.exp(middle) * phi(-0.5 / noise - middle * noise)
            low, high = (middle, high) if exact > delta else (low, middle)
        assert low <= epsilon <= low * 1.25 + 0.02

    def test_equal_releases_are_one_with_less_noise(self) -> None:
        assert self.spend(2.0, count=4).get_epsilon(1e-5) == pytest.approx(self.spend(1.0).get_epsilon(1e-5))

    @pytest.mark.parametrize(("order", "rate", "noise"), [(2, 0.1, 1.0), (5, 0.1, 2.0), (16, 0.3, 3.0)])
    def test_poisson_sampling_is_the_divergence_of_the_mixture(self, order: int, rate: float, noise: float) -> None:
        z = np.linspace(-60, 80, 400_001)
        density = np.exp(-(z**2) / (2 * noise**2)) / math.sqrt(2 * math.pi * noise**2)
        ratio = (1 - rate) + rate * np.exp((2 * z - 1) / (2 * noise**2))
        divergence = math.log(float((density * ratio**order).sum() * (z[1] - z[0]))) / (order - 1)
        accountant = RdpAccountant(config(sampling_method=SamplingMethod.POISSON), orders=[order])
        accountant.compose(GaussianPrivacyEvent(noise, round(rate * 100), 100))
        expected = divergence + math.log1p(-1 / order) - math.log(1e-5 * order) / (order - 1)
        assert accountant.get_epsilon(1e-5) == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize(
        ("method", "relation"),
        [
            (SamplingMethod.POISSON, NeighboringRelation.ADD_OR_REMOVE_ONE),
            (SamplingMethod.WITHOUT_REPLACEMENT, NeighboringRelation.REPLACE_ONE),
        ],
    )
    def test_sampling_amplifies_the_more_the_fewer_are_chosen(
        self, method: SamplingMethod, relation: NeighboringRelation
    ) -> None:
        spent = [
            self.spend(2.0, 20, sample, sampling_method=method, neighboring_relation=relation).get_epsilon(1e-5)
            for sample in (1, 10, 50, 100)
        ]
        assert spent == sorted(spent)
        assert spent[0] < 0.5 * spent[-1]
        assert spent[-1] <= self.spend(2.0, 20).get_epsilon(1e-5) + 0.1

    def test_epsilon_and_delta_belong_together(self) -> None:
        accountant = self.spend(1.0, 3)
        assert accountant.get_delta(accountant.get_epsilon(1e-6)) == pytest.approx(1e-6)
        assert accountant.get_delta(0.0) <= 1
        assert RdpAccountant(config()).get_delta(1.0) == 0
        assert RdpAccountant(config()).get_privacy_spent().epsilon == 0

    def test_looking_ahead_counts_nothing(self) -> None:
        accountant = self.spend(1.0)
        event = EVENT
        limit = accountant.get_epsilon(1e-5)
        assert accountant.would_exceed(event, max_epsilon=limit)
        assert not accountant.would_exceed(event, max_epsilon=3 * limit)
        assert accountant.num_releases == 1
        with pytest.raises(ValueError, match="no max_epsilon"):
            accountant.would_exceed(event)

    def test_a_state_of_another_config_or_version_is_refused(self) -> None:
        state: dict[str, Any] = self.spend(1.0, 3).state_dict()
        again = RdpAccountant(config())
        again.load_state_dict(state)
        assert again.get_privacy_spent() == self.spend(1.0, 3).get_privacy_spent()
        for changed, told in (
            ({**state, "schema_version": 2}, "another version"),
            ({**state, "config": {**state["config"], "target_delta": 0.1}}, "another PrivacyConfig"),
            ({**state, "compositions": [{}]}, "cannot be read"),
        ):
            with pytest.raises(ValueError, match=told):
                again.load_state_dict(changed)

    @pytest.mark.parametrize(
        "make",
        [
            lambda: config(target_delta=0),
            lambda: config(target_delta=1.0),
            lambda: config(population_size=0),
            lambda: config(population_size=1.5),
            lambda: config(max_epsilon=-1.0),
            lambda: config(sampling_method="poisson", neighboring_relation="replace-one"),
            lambda: GaussianPrivacyEvent(0.0, 1, 1),
            lambda: GaussianPrivacyEvent(1.0, 2, 1),
            lambda: GaussianPrivacyEvent(1.0, 1.0, 1),  # type: ignore[arg-type]
            lambda: RdpAccountant(config(), orders=[1.0]),
            lambda: RdpAccountant(config(), orders=[]),
            lambda: RdpAccountant(config()).compose(GaussianPrivacyEvent(1.0, 1, 99)),
            lambda: RdpAccountant(config()).compose(GaussianPrivacyEvent(1.0, 1, 100), 0),
            lambda: RdpAccountant(config()).get_epsilon(0.0),
            lambda: RdpAccountant(config()).get_delta(-1.0),
        ],
    )
    def test_what_cannot_be_is_refused(self, make: Callable[[], object]) -> None:
        with pytest.raises(ValueError, match=r"is|are|does not|cannot|nodes"):
            make()


def test_arrays_of_a_reply_are_not_changed() -> None:
    answers = replies([[30, 40], [0, 1]])
    before = [ArrayRecord(answer.content["arrays"]) for answer in answers]
    train(fixed(), START, answers)
    assert [answer.content["arrays"] for answer in answers] == before
