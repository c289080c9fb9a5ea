"""Beyond Flower (flwr): deadlines, minimum replies, over-selection, labels, seeded choices, and state that is kept."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from flq.apps import ArrayRecord, ConfigRecord, Error, Grid, Message, MetricRecord, RecordDict
from flq.apps.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedXgbCyclic,
    FedYogi,
    Result,
)
from flq.apps.strategy.strategy import Strategy
from flq.errors import StrategyError
from flq.wire.grid import GridNode
from flq.wire.ids import NodeId
from flq.wire.message import ErrorCode
from flq.wire.status import ResultStatus
from tests.grid_double import GridDouble
from tests.unit.strategy_replies import SYNCHRONOUS, Nodes, failed, record, replies, train, values
from tests.unit.test_strategy import POINTS, Breaking, Interrupted

START = record([1.0, 2.0])


def nodes_of(messages: Iterable[Message]) -> list[int]:
    return [message.metadata.dst_node_id for message in messages]


def chosen(strategy: Strategy, grid: Any = None, server_round: int = 1) -> list[int]:
    return nodes_of(strategy.configure_train(server_round, START, ConfigRecord(), grid or Nodes()))


def answer(message: Message) -> RecordDict | Error | ResultStatus:
    """Adds the node's id, or says how far off the model is."""
    metrics = MetricRecord({"num-examples": message.metadata.dst_node_id, "train_loss": 1.0})
    if message.metadata.message_type == "evaluate":
        return RecordDict({"metrics": metrics})
    (array,) = message.content.array_records["arrays"].to_numpy_ndarrays()
    shift = np.array([message.metadata.dst_node_id, message.metadata.dst_node_id % 3], np.float32)
    return RecordDict({"arrays": ArrayRecord([array + shift]), "metrics": metrics})


class Slow(GridDouble):
    """Nodes that never answer: `silent`. Once nobody else is left, a wait lets a second pass."""

    silent: frozenset[int] = frozenset()
    waited: float = 0.0

    def wait(self, seconds: float) -> None:
        ready = [task for task in self.open if task.node_id not in self.silent]
        if not ready:
            self.waited += min(seconds, 1.0)
            return
        task = ready[0]
        self.open.remove(task)
        self.finish(task, self.answer(task.message))


def slow(silent: Iterable[int], count: int = 10) -> tuple[Slow, Grid]:
    door = Slow(answer, node_ids=range(2, 2 + count))
    door.silent = frozenset(silent)
    grid = Grid(door)
    grid._inbox.clock = lambda: door.waited
    return door, grid


class TestDeadline:
    def test_what_is_missing_then_is_cancelled_and_the_rest_counts(self, caplog: pytest.LogCaptureFixture) -> None:
        door, grid = slow([4, 5])
        strategy = FedAvg(round_deadline=30, fraction_evaluate=0)
        result = strategy.start(grid, START, num_rounds=1, timeout=3600)
        assert door.waited == pytest.approx(30, abs=1)
        ids = [node_id for node_id in door.node_ids if node_id not in {4, 5}]
        assert values(result.arrays)[0] == pytest.approx(1 + np.average(ids, weights=ids))
        assert "the reply of node-4 is not used: error 3: the task was cancelled" in caplog.text

    def test_the_timeout_of_start_counts_if_it_is_shorter(self) -> None:
        door, grid = slow([4])
        FedAvg(round_deadline=100, fraction_evaluate=0).start(grid, START, num_rounds=1, timeout=20)
        assert door.waited == pytest.approx(20, abs=1)

    def test_a_plain_grid_is_told(self) -> None:
        told: list[float | None] = []

        class Plain(Nodes):
            def send_and_receive(
                self, messages: Iterable[Message], *, timeout: float | None = None
            ) -> Iterable[Message]:
                told.append(timeout)
                return [Message(answer(message), reply_to=message) for message in messages]  # type: ignore[arg-type]

        FedAvg(round_deadline=7).start(Plain(), START, num_rounds=1, timeout=60)
        assert told == [7, 7]


class TestMinimum:
    @pytest.mark.parametrize("name", SYNCHRONOUS)
    def test_too_few_usable_replies_end_the_run_with_the_reasons(self, name: str) -> None:
        strategy = SYNCHRONOUS[name](min_replies=5)
        answers = [*replies([[1, 2]] * 4), failed(9, "disk full")]
        with pytest.raises(StrategyError) as caught:
            train(strategy, START, answers, server_round=4)
        assert caught.value.message == (
            "round 4: 4 replies can be used, and min_replies is 5: node 9: error 2: disk full"
        )

    @pytest.mark.parametrize("name", SYNCHRONOUS)
    def test_enough_are_enough(self, name: str) -> None:
        answers = [*replies([[1, 2]] * 4), failed(9, "disk full")]
        assert np.array_equal(values(train(SYNCHRONOUS[name](min_replies=4), START, answers)), [1, 2])

    def test_that_nobody_failed_is_told_too(self) -> None:
        with pytest.raises(StrategyError, match="min_replies is 3: no more have come in"):
            train(FedAvg(min_replies=3), START, replies([[1, 2]] * 2))


class TestOverSelection:
    @pytest.mark.parametrize(
        ("fraction", "over", "asked", "enough"),
        [(0.5, 0.2, 6, 5), (0.5, 0.5, 8, 5), (0.5, 0, 5, None), (1.0, 0.3, 10, None), (0.9, 0.3, 10, 9)],
    )
    def test_so_many_more_are_asked(self, fraction: float, over: float, asked: int, enough: int | None) -> None:
        strategy = FedAvg(fraction_train=fraction, over_select=over)
        assert len(chosen(strategy)) == asked
        assert strategy.enough == enough

    def test_rounding_asks_no_more_than_said(self) -> None:
        assert len(chosen(FedAvg(fraction_train=0.1, min_train_nodes=10, over_select=0.1), Nodes(20))) == 11

    @pytest.mark.parametrize("over", [-0.1, float("nan"), float("inf")])
    def test_is_a_fraction(self, over: float) -> None:
        with pytest.raises(StrategyError, match="over_select is"):
            chosen(FedAvg(over_select=over))

    def test_the_round_ends_with_enough_replies_and_late_ones_are_told(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        door, grid = slow([2, 5])
        strategy = FedAvg(fraction_train=0.8, fraction_evaluate=0, over_select=0.25)
        result = strategy.start(grid, START, num_rounds=1)
        assert door.waited == 0  # it did not wait for the silent ones
        ids = [node_id for node_id in door.node_ids if node_id not in {2, 5}]
        assert values(result.arrays)[0] == pytest.approx(1 + np.average(ids, weights=ids))
        assert "enough replies have come in; late, and not applied: node-2, node-5" in caplog.text
        assert [done.status for done in door.done].count(ResultStatus.CANCELLED) == 2

    @pytest.mark.parametrize("name", SYNCHRONOUS)
    def test_no_more_than_enough_are_applied(self, name: str) -> None:
        strategy = SYNCHRONOUS[name](fraction_train=0.5, over_select=1.0)
        rows = [[1, 2]] * 5 + [[1e6, 1e6]] * 4
        late = failed(11, "cancelled", ErrorCode.MESSAGE_UNAVAILABLE)
        assert np.array_equal(values(train(strategy, START, [*replies(rows), late])), [1, 2])

    @pytest.mark.parametrize("name", SYNCHRONOUS)
    def test_who_is_missing_when_too_few_have_come_is_not_late(self, name: str) -> None:
        strategy = SYNCHRONOUS[name](fraction_train=0.5, over_select=0.2, min_replies=2)
        gone = [failed(node_id, "the task was cancelled", ErrorCode.MESSAGE_UNAVAILABLE) for node_id in range(2, 8)]
        with pytest.raises(StrategyError, match=r"none of 6 replies can be used: .* error 3: the task was cancelled"):
            train(strategy, START, gone)
        with pytest.raises(StrategyError, match=r"1 replies can be used, and min_replies is 2: .* error 3"):
            train(strategy, START, [*gone[:5], *replies([[1, 2]])])

    def test_a_failure_is_no_lateness(self, caplog: pytest.LogCaptureFixture) -> None:
        strategy = FedAvg(fraction_train=0.5, over_select=0.2)
        train(strategy, START, [failed(9, "disk full"), *replies([[1, 2]] * 5)])
        assert "the reply of node 9 is not used: error 2: disk full" in caplog.text
        assert "late" not in caplog.text

    def test_a_failure_does_not_count_as_one_of_enough(self) -> None:
        door, grid = slow([])
        door.answer = lambda message: Error(2, "boom") if message.metadata.dst_node_id < 4 else answer(message)
        strategy = FedAvg(fraction_train=0.8, fraction_evaluate=0, over_select=0.25)
        result = strategy.start(grid, START, num_rounds=1)
        ids = list(range(4, 12))
        assert values(result.arrays)[0] == pytest.approx(1 + np.average(ids, weights=ids))

    def test_a_plain_grid_waits_for_all_and_applies_enough(self) -> None:
        class Plain(Nodes):
            def send_and_receive(
                self,
                messages: Iterable[Message],
                *,
                timeout: float | None = None,
            ) -> Iterable[Message]:
                return [Message(answer(message), reply_to=message) for message in messages]  # type: ignore[arg-type]

        strategy = FedAvg(fraction_train=0.5, fraction_evaluate=0, over_select=1.0, selection_seed=1)
        result = strategy.start(Plain(), START, num_rounds=1)
        assert values(result.arrays)[0] == pytest.approx(1 + np.average(range(2, 7), weights=range(2, 7)))


class Labelled(Nodes):
    """Nodes of two sites."""

    def get_nodes(self) -> Sequence[GridNode]:
        sites = ("east", "west")
        return [
            GridNode(node_id=NodeId(i), name=f"n{i}", config={}, labels={"site": sites[i % 2], "gpu": str(i % 3)})
            for i in self.ids
        ]

    def wait(self, seconds: float) -> None:
        raise TimeoutError(seconds)


class TestLabels:
    @pytest.mark.parametrize(
        ("labels", "expected"),
        [
            ({"site": "east"}, [2, 4, 6, 8, 10]),
            ({"site": "west", "gpu": "0"}, [3, 9]),
            ({}, list(range(2, 12))),
            (None, list(range(2, 12))),
        ],
    )
    def test_only_nodes_that_have_all_of_them_are_chosen(
        self, labels: Mapping[str, str] | None, expected: list[int]
    ) -> None:
        strategy = FedAvg(node_labels=labels)
        assert chosen(strategy, Labelled()) == expected
        assert nodes_of(strategy.configure_evaluate(1, START, ConfigRecord(), Labelled())) == expected

    def test_only_they_count_as_available(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        with pytest.raises(TimeoutError):
            chosen(FedAvg(node_labels={"site": "west", "gpu": "0"}, min_available_nodes=3), Labelled())
        assert "2 of 3 nodes with site=west, gpu=0 are online (n3, n9)" in caplog.text

    def test_a_grid_without_labels_is_told(self) -> None:
        with pytest.raises(StrategyError, match="does not know the labels"):
            chosen(FedAvg(node_labels={"site": "east"}))


class TestSeed:
    def test_the_same_nodes_are_chosen_in_every_run(self) -> None:
        def choices(selection_seed: int | None, run_seed: str) -> list[list[int]]:
            strategy = FedAvg(fraction_train=0.3, selection_seed=selection_seed)
            strategy.seed = run_seed
            return [chosen(strategy, Nodes(40), server_round) for server_round in (1, 2, 3)]

        assert choices(5, "1/0") == choices(5, "2/0")
        assert choices(5, "1/0") != choices(6, "1/0")
        assert choices(None, "1/0") == choices(None, "1/0")
        assert choices(None, "1/0") != choices(None, "2/0")
        assert len({tuple(choice) for choice in choices(5, "1/0")}) == 3


class TestCyclic:
    def test_nodes_take_turns(self) -> None:
        strategy = FedXgbCyclic()
        assert [chosen(strategy, Nodes(3), server_round) for server_round in range(1, 6)] == [[2], [3], [4], [2], [3]]
        assert nodes_of(strategy.configure_evaluate(2, START, ConfigRecord(), Nodes(3))) == [3]
        assert chosen(FedXgbCyclic(fraction_train=0)) == []

    def test_the_model_of_a_node_that_fails_is_passed_over(self, caplog: pytest.LogCaptureFixture) -> None:
        strategy = FedXgbCyclic()
        assert train(strategy, START, [failed(2)]) is None
        assert "the model stays as it is" in caplog.text
        assert train(strategy, START, replies([[np.nan, 1]])) is None
        assert train(strategy, START, []) is None
        assert np.array_equal(values(train(strategy, START, replies([[5, 6]]))), [5, 6])

    @pytest.mark.parametrize("name", ["fraction_train", "fraction_evaluate"])
    def test_takes_no_part_of_the_nodes(self, name: str) -> None:
        options: Any = {name: 0.5}
        with pytest.raises(ValueError, match=f"{name} is 0.5"):
            FedXgbCyclic(**options)


def private() -> Strategy:
    return DifferentialPrivacyServerSideAdaptiveClipping(
        FedAdam(eta=0.1, min_train_nodes=2), 0.5, 2, initial_clipping_norm=0.5, clipped_count_stddev=1.0
    )


class TestRestart:
    """A run that another attempt goes on with ends with the model of an undisturbed one."""

    STRATEGIES: Mapping[str, Any] = {
        **SYNCHRONOUS,
        "FedXgbCyclic": FedXgbCyclic,
        "chosen": lambda: FedYogi(fraction_train=0.5, min_train_nodes=1, min_available_nodes=1, over_select=0.5),
    }

    def run(self, door: GridDouble, strategy: Strategy) -> Result:
        return strategy.start(Grid(door), START, num_rounds=3)

    @pytest.mark.parametrize("point", POINTS)
    @pytest.mark.parametrize("name", ["FedAvgM", "FedAdagrad", "FedAdam", "FedYogi", "FedXgbCyclic", "chosen"])
    def test_at_every_point(self, name: str, point: tuple[str, int]) -> None:
        make = self.STRATEGIES[name]
        expected = self.run(GridDouble(answer, node_ids=(2, 3, 4)), make())
        door = Breaking(answer, node_ids=(2, 3, 4))
        door.left = point
        with pytest.raises(Interrupted):
            self.run(door, make())
        assert self.run(door, make()) == expected

    @pytest.mark.parametrize("name", SYNCHRONOUS)
    def test_every_strategy(self, name: str) -> None:
        make = self.STRATEGIES[name]
        expected = self.run(GridDouble(answer, node_ids=(2, 3, 4)), make())
        door = Breaking(answer, node_ids=(2, 3, 4))
        door.left = ("before commit", 3)
        with pytest.raises(Interrupted):
            self.run(door, make())
        assert self.run(door, make()) == expected

    def test_a_round_that_is_done_again_releases_the_same_noise(self) -> None:
        door = Breaking(answer)
        first, again = private(), private()
        door.left = ("before commit", 2)
        with pytest.raises(Interrupted):
            self.run(door, first)
        lost = first.strategy.current_arrays  # type: ignore[attr-defined]
        assert lost is not None
        result = self.run(door, again)
        # The first attempt had made the model of round 2 of this one, and lost it.
        assert first.generator(2, 0).random() == again.generator(2, 0).random()  # type: ignore[attr-defined]
        assert len(result.train_metrics_clientapp) == 3

    def test_the_state_of_a_wrapper_holds_that_of_the_strategy_inside(self) -> None:
        strategy, again = private(), private()
        train(strategy, START, replies([[1.5, 2], [1, 3]]))
        again.load_state(strategy.save_state())
        for wrapper in (strategy, again):
            assert isinstance(wrapper, DifferentialPrivacyServerSideAdaptiveClipping)
            assert isinstance(wrapper.strategy, FedAdam)
        assert again.strategy.m_t == strategy.strategy.m_t  # type: ignore[attr-defined]
        assert again.clipping_norm == strategy.clipping_norm != 0.5  # type: ignore[attr-defined]
        following = [
            train(wrapper, START, replies([[1.5, 2], [1, 3]]), server_round=2) for wrapper in (strategy, again)
        ]
        assert following[0] == following[1]

    def test_nothing_is_carried_before_the_first_round(self) -> None:
        assert len(FedAdam().save_state()) == 0
        assert len(FedAvgM(server_momentum=0.5).save_state()) == 0


def test_a_wrapper_hands_on_what_the_round_is_about() -> None:
    inner = FedAvg(fraction_train=0.5, over_select=0.4, round_deadline=9)
    strategy = DifferentialPrivacyServerSideFixedClipping(inner, 0.0, 1.0, 5)
    strategy.seed, strategy.patience = "4/0", 17
    first = chosen(strategy)
    assert (inner.seed, inner.patience) == ("4/0", 17)
    assert (strategy.enough, strategy.round_deadline, len(first)) == (5, 9, 7)
    rows = [[1, 2]] * 5 + [[1e6, 1e6]]
    late = failed(11, "cancelled", ErrorCode.MESSAGE_UNAVAILABLE)
    arrays, _ = strategy.aggregate_train(1, [late, *replies(rows)])
    assert np.array_equal(values(arrays), [1, 2])
