"""Every strategy against its paper's formula, written out by hand in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flq.apps import ArrayRecord, ConfigRecord
from flq.apps.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
    select_krum_repeatedly,
    select_multikrum,
)
from flq.apps.strategy.robust import sort
from flq.errors import StrategyError
from tests.unit.strategy_replies import SYNCHRONOUS, Nodes, record, replies, reply, train, values

RNG = np.random.default_rng(7)
START = RNG.normal(size=6)
ROUNDS = [RNG.normal(size=(7, 6)) for _ in range(4)]
WEIGHTS = [3, 1, 4, 1, 5, 9, 2]
LOSSES = [0.5, 1.0, 2.0, 0.1, 0.7, 3.0, 1.5]

FLOATS = st.floats(-100, 100, width=32)
ROWS = hnp.arrays(np.float32, st.tuples(st.integers(3, 9), st.just(4)), elements=FLOATS)


def run(strategy: Any, rounds: list[np.ndarray] = ROUNDS) -> list[np.ndarray]:
    """The model after each round; the nodes add what `rounds` says to the model that they get."""
    model, found = record(START), []
    for server_round, steps in enumerate(rounds, start=1):
        rows = values(model) + steps
        new = train(strategy, model, replies(rows, WEIGHTS, LOSSES), server_round)
        assert new is not None
        model = new
        found.append(values(model))
    return found


def expected(step: Callable[[int, np.ndarray, np.ndarray], np.ndarray]) -> list[np.ndarray]:
    model, found = START, []
    for server_round, steps in enumerate(ROUNDS, start=1):
        model = step(server_round, model, model + steps)
        found.append(model)
    return found


def average(rows: np.ndarray) -> np.ndarray:
    return np.asarray(sum(weight * row for weight, row in zip(WEIGHTS, rows, strict=True)) / sum(WEIGHTS))


def check(strategy: Any, step: Callable[[int, np.ndarray, np.ndarray], np.ndarray]) -> None:
    np.testing.assert_allclose(run(strategy), expected(step), rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("float64", [False, True])
class TestKnownAnswers:
    def test_fedavg_and_fedprox(self, *, float64: bool) -> None:
        for strategy in (FedAvg(float64_accumulator=float64), FedProx(proximal_mu=0.3, float64_accumulator=float64)):
            check(strategy, lambda _round, _model, rows: average(rows))

    def test_fedavgm(self, *, float64: bool) -> None:
        momentum = np.zeros(6)

        def step(_round: int, model: np.ndarray, rows: np.ndarray) -> np.ndarray:
            nonlocal momentum
            momentum = 0.9 * momentum + (model - average(rows))
            return np.asarray(model - 0.7 * momentum)

        strategy = FedAvgM(server_learning_rate=0.7, server_momentum=0.9, float64_accumulator=float64)
        check(strategy, step)
        assert strategy.momentum_vector is not None
        np.testing.assert_allclose(values(strategy.momentum_vector), -momentum, rtol=1e-5, atol=1e-5)

    def test_fedavgm_without_momentum(self, *, float64: bool) -> None:
        strategy = FedAvgM(server_learning_rate=0.7, float64_accumulator=float64)
        check(strategy, lambda _round, model, rows: model + 0.7 * (average(rows) - model))
        assert strategy.momentum_vector is None
        check(FedAvgM(float64_accumulator=float64), lambda _round, _model, rows: average(rows))

    @pytest.mark.parametrize("name", ["FedAdagrad", "FedAdam", "FedYogi"])
    def test_fedopt(self, name: str, *, float64: bool) -> None:
        eta, tau, beta_1, beta_2 = 0.3, 0.01, 0.8, 0.95
        m, v = np.zeros(6), np.zeros(6)

        def step(server_round: int, model: np.ndarray, rows: np.ndarray) -> np.ndarray:
            nonlocal m, v
            delta, rate = average(rows) - model, eta
            if name == "FedAdagrad":
                m, v = delta, v + delta**2
            elif name == "FedAdam":
                m, v = beta_1 * m + (1 - beta_1) * delta, beta_2 * v + (1 - beta_2) * delta**2
                rate *= np.sqrt(1 - beta_2 ** (server_round + 1)) / (1 - beta_1 ** (server_round + 1))
            else:
                m = beta_1 * m + (1 - beta_1) * delta
                v = v - (1 - beta_2) * delta**2 * np.sign(v - delta**2)
            return np.asarray(model + rate * m / (np.sqrt(v) + tau))

        betas = {} if name == "FedAdagrad" else {"beta_1": beta_1, "beta_2": beta_2}
        make: Any = {"FedAdagrad": FedAdagrad, "FedAdam": FedAdam, "FedYogi": FedYogi}[name]
        strategy = make(eta=eta, tau=tau, float64_accumulator=float64, **betas)
        check(strategy, step)
        np.testing.assert_allclose(values(strategy.m_t), m, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(values(strategy.v_t), v, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("q", [0.0, 0.2, 1.0, 2.0])
    def test_qfedavg(self, q: float, *, float64: bool) -> None:
        lipschitz = 1 / 0.4

        def step(_round: int, model: np.ndarray, rows: np.ndarray) -> np.ndarray:
            step, size = np.zeros(6), 0.0
            for row, loss in zip(rows, LOSSES, strict=True):
                gradient = lipschitz * (model - row)
                step += loss**q * gradient
                size += q * loss ** (q - 1) * (gradient**2).sum() + lipschitz * loss**q
            return model - step / size

        check(QFedAvg(0.4, q=q, float64_accumulator=float64), step)

    def test_fedmedian(self, *, float64: bool) -> None:
        def step(_round: int, _model: np.ndarray, rows: np.ndarray) -> np.ndarray:
            return np.array([sorted(column)[3] for column in rows.T])

        check(FedMedian(float64_accumulator=float64), step)

    def test_fedtrimmedavg(self, *, float64: bool) -> None:
        def step(_round: int, _model: np.ndarray, rows: np.ndarray) -> np.ndarray:
            return np.array([sum(sorted(column)[2:5]) / 3 for column in rows.T])  # a third of 7 is 2 whole ones

        check(FedTrimmedAvg(beta=0.33, float64_accumulator=float64), step)

    def test_krum_and_multikrum(self, *, float64: bool) -> None:
        def order(rows: np.ndarray, liars: int) -> list[int]:
            scores = []
            for index, row in enumerate(rows):
                others = sorted(float(((row - other) ** 2).sum()) for at, other in enumerate(rows) if at != index)
                scores.append(sum(others[: 7 - liars - 2]))
            return sorted(range(7), key=lambda index: scores[index])

        def multi(count: int) -> Callable[[int, np.ndarray, np.ndarray], np.ndarray]:
            def step(_round: int, _model: np.ndarray, rows: np.ndarray) -> np.ndarray:
                best = order(rows, 2)[:count]
                return np.asarray(sum(WEIGHTS[at] * rows[at] for at in best) / sum(WEIGHTS[at] for at in best))

            return step

        check(Krum(num_malicious_nodes=2, float64_accumulator=float64), multi(1))
        check(
            MultiKrum(num_malicious_nodes=2, num_nodes_to_select=3, float64_accumulator=float64),
            multi(3),
        )

    @pytest.mark.parametrize("rule", [None, select_multikrum, select_krum_repeatedly])
    def test_bulyan(self, rule: Any, *, float64: bool) -> None:
        def krum(rows: list[np.ndarray], liars: int) -> list[int]:
            scores = []
            for index, row in enumerate(rows):
                others = sorted(float(((row - other) ** 2).sum()) for at, other in enumerate(rows) if at != index)
                scores.append(sum(others[: max(len(rows) - liars - 2, 1)]))
            return sorted(range(len(rows)), key=lambda index: scores[index])

        def step(_round: int, _model: np.ndarray, rows: np.ndarray) -> np.ndarray:
            left, chosen = list(rows), list[np.ndarray]()
            if rule is select_krum_repeatedly:
                while len(chosen) < 5:
                    chosen.append(left.pop(krum(left, 1)[0]))
            else:
                chosen = [left[at] for at in krum(left, 1)[:5]]
            model = []
            for column in np.array(chosen).T:
                middle = sorted(column)[2]
                model.append(sum(sorted(column, key=lambda value: abs(value - middle))[:3]) / 3)
            return np.array(model)

        check(Bulyan(num_malicious_nodes=1, selection_rule=rule, float64_accumulator=float64), step)


def test_the_proximal_term_is_in_the_config() -> None:
    config = ConfigRecord({"lr": 0.1})
    first = next(iter(FedProx(proximal_mu=0.25).configure_train(3, record([1]), config, Nodes())))
    assert first.content["config"] == {"lr": 0.1, "proximal-mu": 0.25, "server-round": 3}
    assert config == {"lr": 0.1}


class TestProperties:
    @pytest.mark.parametrize("name", SYNCHRONOUS)
    @settings(max_examples=15, deadline=None)
    @given(rows=ROWS, random=st.randoms())
    def test_the_order_of_clients_hardly_matters(self, name: str, rows: np.ndarray, random: Any) -> None:
        order = list(range(len(rows)))
        random.shuffle(order)
        found = []
        for chosen in (range(len(rows)), order):
            strategy = SYNCHRONOUS[name](float64_accumulator=True)
            answers = [replies(rows, range(1, 10), range(1, 10))[index] for index in chosen]
            found.append(train(strategy, record([1, 2, 3, 4]), answers))
        if name in {"Krum", "MultiKrum", "Bulyan"} and has_equal_scores(rows):
            return  # the earlier one is chosen, which depends on the order
        np.testing.assert_allclose(values(found[0]), values(found[1]), rtol=2e-6, atol=1e-5)

    @pytest.mark.parametrize("name", SYNCHRONOUS)
    @settings(max_examples=15, deadline=None)
    @given(row=hnp.arrays(np.float32, 5, elements=FLOATS), count=st.integers(3, 6))
    def test_nodes_that_change_nothing_leave_the_model_as_it_is(self, name: str, row: np.ndarray, count: int) -> None:
        new = train(SYNCHRONOUS[name](), record(row), replies([row] * count))
        assert np.array_equal(values(new), row.astype(np.float64))

    @pytest.mark.parametrize("name", ["FedAvg", "FedProx", "FedMedian", "FedTrimmedAvg", "Krum", "MultiKrum"])
    @settings(max_examples=25, deadline=None)
    @given(
        row=hnp.arrays(np.float32, 5, elements=st.floats(-(2.0**100), 2.0**100, width=32)), weight=st.floats(1e-3, 1e6)
    )
    def test_one_client_gives_itself(self, name: str, row: np.ndarray, weight: float) -> None:
        new = train(SYNCHRONOUS[name](), record(np.zeros(5)), replies([row], [weight]))
        assert np.array_equal(values(new), row.astype(np.float64))

    def test_one_client_is_where_the_step_goes_to(self) -> None:
        new = train(QFedAvg(0.1, q=0.0), record([1, 1]), replies([[3, 0]], losses=[5]))
        assert values(new) == pytest.approx([3, 0])  # without fairness it is the mean

    @pytest.mark.parametrize("name", SYNCHRONOUS)
    @pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int64, np.bool_])
    def test_dtypes_and_shapes_are_kept(self, name: str, dtype: Any) -> None:
        def model(seed: int) -> ArrayRecord:
            rng = np.random.default_rng(seed)
            shapes: list[tuple[int, ...]] = [(2, 3), (), (0, 2), (5,)]
            return ArrayRecord([np.asarray(4 * rng.random(shape)).astype(dtype) for shape in shapes])

        new = train(SYNCHRONOUS[name](), model(0), [reply(node_id, model(node_id)) for node_id in range(2, 6)])
        assert new is not None
        assert [(array.dtype, array.shape) for array in new.values()] == [
            (array.dtype, array.shape) for array in model(0).values()
        ]

    @pytest.mark.parametrize("name", SYNCHRONOUS)
    def test_threads_change_nothing(self, name: str) -> None:
        rng = np.random.default_rng(1)
        start, rows = rng.normal(size=1_100_000), rng.normal(size=(4, 1_100_000))
        found = [values(train(SYNCHRONOUS[name](threads=t), record(start), replies(rows))) for t in (1, 2)]
        assert np.array_equal(found[0], found[1])


def has_equal_scores(rows: np.ndarray) -> bool:
    """Whether Krum has to choose between equals, or nearly so."""
    rows = rows.astype(np.float64)
    count = len(rows)
    others = np.array([sorted(((rows[i] - rows[j]) ** 2).sum() for j in range(count) if j != i) for i in range(count)])
    scores = np.sort(others[:, : max(count - 2, 1)].sum(axis=1))
    return bool((np.diff(scores) <= 1e-9 * (1 + scores[1:])).any())


@pytest.mark.parametrize("count", range(1, 12))
def test_rows_are_sorted_element_by_element(count: int) -> None:
    # A network of exchanges sorts everything if it sorts all rows of zeros and ones.
    columns = np.array(list(itertools.product([0.0, 1.0], repeat=count))).T
    found = np.array(sort(list(columns.copy())))
    assert np.array_equal(found, np.sort(columns, axis=0))


class TestRobustness:
    """Whatever the stated number of liars says, the model stays among the honest replies."""

    LIES = st.lists(
        hnp.arrays(np.float32, 4, elements=st.sampled_from([-1e18, -1e4, -7.0, 0.0, 3.5, 1e4, 1e18])),
        min_size=2,
        max_size=2,
    )
    HONEST = hnp.arrays(np.float32, (9, 4), elements=st.floats(-1, 1, width=32))

    @pytest.mark.parametrize(
        "strategy",
        [
            FedMedian(),
            FedTrimmedAvg(beta=0.2),
            Krum(num_malicious_nodes=2),
            Bulyan(num_malicious_nodes=2),
            Bulyan(num_malicious_nodes=2, selection_rule=select_krum_repeatedly),
        ],
        ids=["FedMedian", "FedTrimmedAvg", "Krum", "Bulyan", "Bulyan-repeatedly"],
    )
    @settings(max_examples=40, deadline=None)
    @given(honest=HONEST, lies=LIES, random=st.randoms())
    def test_two_liars_of_eleven(self, strategy: Any, honest: np.ndarray, lies: list[np.ndarray], random: Any) -> None:
        rows = [*honest, *lies]
        random.shuffle(rows)
        found = values(train(strategy, record(np.zeros(4)), replies(rows)))
        if isinstance(strategy, Krum):
            # It may be a lie that is as close to the honest ones as they are to each other, but none that is far away.
            spread = max(np.abs(one - other).max() for one in honest for other in honest)
            assert np.abs(found).max() <= 1 + 8 * spread
            return
        low, high = honest.min(axis=0).astype(np.float64), honest.max(axis=0).astype(np.float64)
        assert np.all(found >= low - 1e-6)
        assert np.all(found <= high + 1e-6)

    def test_multikrum_chooses_none_that_is_far_away(self) -> None:
        rows = [[0, 1], [1e9, 0], [1, 0], [0, 0], [-1e9, 5], [1, 1], [0.5, 0.5]]
        strategy = MultiKrum(num_malicious_nodes=2, num_nodes_to_select=4)
        assert np.abs(values(train(strategy, record([0, 0]), replies(rows)))).max() <= 1

    def test_metrics_are_those_of_the_chosen(self) -> None:
        rows = [[0], [0.5], [0.1], [9], [0.2]]
        answers = replies(rows, losses=[1, 2, 3, 4, 5])
        _, metrics = Krum(num_malicious_nodes=1).aggregate_train(1, answers)
        assert metrics == {"train_loss": 3.0}

    def test_too_few_replies_for_the_stated_liars_are_told(self, caplog: pytest.LogCaptureFixture) -> None:
        train(Krum(num_malicious_nodes=2), record([0]), replies([[1], [2], [3]]))
        assert "3 replies do not suffice for 2 liars: Krum needs 7" in caplog.text
        caplog.clear()
        assert train(Bulyan(num_malicious_nodes=1), record([0]), replies([[1]] * 6)) is None
        assert "6 replies do not suffice for 1 liars: Bulyan needs 7 (4f + 3); the model stays as it is" in caplog.text


class TestMistakes:
    @pytest.mark.parametrize(
        ("make", "told"),
        [
            (lambda: FedTrimmedAvg(beta=0.5), "beta is 0.5"),
            (lambda: FedTrimmedAvg(beta=-0.1), "beta is -0.1"),
            (lambda: MultiKrum(num_nodes_to_select=0), "num_nodes_to_select"),
            (lambda: Krum(num_malicious_nodes=-1), "num_malicious_nodes"),
            (lambda: Bulyan(num_malicious_nodes=-1), "num_malicious_nodes"),
        ],
    )
    def test_values_that_cannot_be_are_refused_at_once(self, make: Callable[[], object], told: str) -> None:
        with pytest.raises(ValueError, match=told):
            make()

    @pytest.mark.parametrize("name", ["FedAvgM", "FedAdam", "QFedAvg"])
    def test_a_step_needs_the_model_that_was_sent(self, name: str) -> None:
        with pytest.raises(StrategyError, match="configure_train has to be called before"):
            SYNCHRONOUS[name]().aggregate_train(1, replies([[1.0]]))

    @pytest.mark.parametrize("name", ["FedAvgM", "FedAdam"])
    def test_nodes_that_return_another_model_are_told(self, name: str) -> None:
        with pytest.raises(StrategyError, match="other names, dtypes or shapes"):
            train(SYNCHRONOUS[name](), record([1, 2]), replies([[1], [2]]))

    def test_the_state_of_another_model_is_told(self) -> None:
        strategy = FedAdam()
        train(strategy, record([1, 2]), replies([[1, 2], [2, 3]]))
        with pytest.raises(StrategyError, match="belongs to another model"):
            train(strategy, record([1]), replies([[1], [2]]))

    def test_a_step_into_nowhere_is_told(self) -> None:
        with pytest.raises(StrategyError, match="round 3: the step makes values of the array '0' infinite or NaN"):
            train(FedAdam(tau=0.0), record([1, 2]), replies([[1, 2]] * 2), server_round=3)

    def test_a_learning_rate_is_positive(self) -> None:
        with pytest.raises(StrategyError, match="client_learning_rate is 0"):
            train(QFedAvg(0.0), record([1]), replies([[1]]))

    @pytest.mark.parametrize("chosen", [lambda contents: contents[:2], lambda _contents: replies([[1]] * 9)])
    def test_a_selection_rule_returns_as_many_as_asked_for_of_what_it_got(self, chosen: Any) -> None:
        strategy = Bulyan(num_malicious_nodes=1, selection_rule=lambda contents, _liars, _count: chosen(contents))
        with pytest.raises(StrategyError, match="selection_rule of Bulyan has"):
            train(strategy, record([0]), replies([[1]] * 7))

    def test_complex_arrays_have_no_median(self) -> None:
        answers = [reply(node_id, record([1j], dtype=np.complex64)) for node_id in (2, 3)]
        with pytest.raises(StrategyError, match="complex numbers have no order"):
            FedMedian().aggregate_train(1, answers)
        with pytest.raises(StrategyError, match="no rule for complex arrays"):
            train(FedAdam(), record([1j], dtype=np.complex64), answers)
        assert FedAvg().aggregate_train(1, answers)[0] == record([1j], dtype=np.complex64)


def test_large_values_are_told_rather_than_made_infinite() -> None:
    with pytest.raises(StrategyError, match="too large to be added up"):
        train(FedMedian(), record([0]), replies([[3e38], [-3e38]]))
    assert values(train(FedMedian(float64_accumulator=True), record([0]), replies([[3e38], [-3e38]]))) == [0]
