from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from flq.apps import ArrayRecord, ClientApp, ConfigRecord, Context, Error, Grid, Message, MetricRecord, RecordDict
from flq.apps.strategy import FedAvg, Result, Strategy
from flq.apps.strategy.grids import DurableGrid, MessageGrid
from flq.apps.strategy.history import history
from flq.errors import AttemptFenced, StrategyError
from flq.wire.grid import Checkpoint
from flq.wire.ids import ObjectHash
from tests.grid_double import Answer, GridDouble, nodes_of


def adding_app() -> ClientApp:
    """Each node adds its id to the model."""
    app = ClientApp()

    @app.train()
    def train(msg: Message, context: Context) -> Message:
        (array,) = msg.content.array_records["arrays"].to_numpy_ndarrays()
        metrics = MetricRecord({"num-examples": 1, "loss": 1.0 / msg.content.config_records["config"]["server-round"]})  # type: ignore[operator]
        return Message(RecordDict({"arrays": ArrayRecord([array + context.node_id]), "metrics": metrics}), reply_to=msg)

    @app.evaluate()
    def evaluate(msg: Message, _context: Context) -> Message:
        return Message(RecordDict({"m": MetricRecord({"num-examples": 2, "loss": 0.5})}), reply_to=msg)

    return app


ANSWER: Answer = nodes_of(adding_app(), {}, (2, 3))
START = ArrayRecord([np.zeros(20_000)])


def measured(_server_round: int, arrays: ArrayRecord) -> MetricRecord:
    return MetricRecord({"loss": float(arrays["0"].view()[0]), "accuracy": 0.75})


class PlainGrid:
    """What a unit test of an app might use: the four methods, and nothing of flq's."""

    def __init__(self) -> None:
        self.timeouts: list[float | None] = []

    def get_node_ids(self) -> list[int]:
        return [2, 3]

    def push_messages(self, messages: Iterable[Message]) -> list[str | None]:
        raise AssertionError(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        raise AssertionError(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        self.timeouts.append(timeout)
        return [Message(ANSWER(message), reply_to=message) for message in messages]  # type: ignore[arg-type]


class TestLoop:
    def test_a_plain_grid_is_enough(self) -> None:
        grid = PlainGrid()
        assert not isinstance(grid, DurableGrid)
        result = FedAvg().start(grid, START, num_rounds=2, timeout=5, evaluate_fn=measured)
        assert result.arrays["0"].numpy()[0] == 5  # two rounds of the mean of 2 and 3
        assert {number: dict(record) for number, record in result.train_metrics_clientapp.items()} == {
            1: {"loss": 1.0},
            2: {"loss": 0.5},
        }
        assert result.evaluate_metrics_clientapp == {1: {"loss": 0.5}, 2: {"loss": 0.5}}
        assert [record["loss"] for record in result.evaluate_metrics_serverapp.values()] == [0.0, 2.5, 5.0]
        assert grid.timeouts == [5, 5, 5, 5]

    def test_no_rounds_return_the_initial_model(self) -> None:
        assert FedAvg().start(PlainGrid(), START, num_rounds=0).arrays == START

    def test_configs_reach_the_nodes(self) -> None:
        seen: list[tuple[str, object]] = []

        class Grid(PlainGrid):
            def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
                messages = list(messages)
                seen.append((messages[0].metadata.message_type, messages[0].content.config_records["config"].get("x")))
                return super().send_and_receive(messages, timeout=timeout)

        FedAvg().start(
            Grid(),
            START,
            num_rounds=1,
            train_config=ConfigRecord({"x": 1}),
            evaluate_config=ConfigRecord({"x": 2}),
        )
        assert seen == [("train", 1), ("evaluate", 2)]

    def test_evaluate_fn_may_empty_its_record_and_say_nothing(self) -> None:
        def emptied(_server_round: int, arrays: ArrayRecord) -> None:
            arrays.to_numpy_ndarrays(keep_input=False)

        result = FedAvg().start(PlainGrid(), START, num_rounds=1, evaluate_fn=emptied)
        assert len(result.arrays) == len(START) == 1
        assert result.evaluate_metrics_serverapp == {}

    def test_a_node_that_fails_is_named_in_the_log_and_the_round_goes_on(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        def answer(message: Message) -> Any:
            if message.metadata.dst_node_id == 3 and message.metadata.message_type == "train":
                return Error(2, "ZeroDivisionError: division by zero")
            return ANSWER(message)

        result = FedAvg().start(Grid(GridDouble(answer)), START, num_rounds=1)
        assert result.arrays["0"].numpy()[0] == 2
        told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert told == ["the reply of node-3 is not used: error 2: ZeroDivisionError: division by zero"]

    def test_a_strategy_that_keeps_the_model_and_says_nothing(self) -> None:
        class Idle(Strategy):
            def configure_train(self, *_: object) -> list[Message]:
                return []

            def configure_evaluate(self, *_: object) -> list[Message]:
                return []

            def aggregate_train(self, *_: object) -> tuple[None, None]:
                return None, None

            def aggregate_evaluate(self, *_: object) -> None:
                return None

            def summary(self) -> None:
                """Nothing to tell."""

        door = GridDouble(ANSWER)
        result = Idle().start(Grid(door), START, num_rounds=2)
        assert result == Result(arrays=START)
        assert (door.pushes, len(door.checkpoints)) == ([], 3)

    def test_a_strategy_can_aggregate_before_or_behind_ours(self) -> None:
        class Doubled(FedAvg):
            def aggregate_train(
                self, server_round: int, replies: Iterable[Message]
            ) -> tuple[ArrayRecord | None, MetricRecord | None]:
                arrays, metrics = super().aggregate_train(server_round, list(replies))
                assert arrays is not None
                return ArrayRecord([2 * array for array in arrays.to_numpy_ndarrays()]), metrics

        assert Doubled().start(Grid(GridDouble(ANSWER)), START, num_rounds=1).arrays["0"].numpy()[0] == 5


class TestHistory:
    def test_each_source_has_its_prefix(self) -> None:
        named = history(
            server=MetricRecord({"loss": 0.1, "accuracy": 0.9}),
            train=MetricRecord({"loss": 0.2, "train_acc": 0.3}),
            evaluate=MetricRecord({"loss": 0.4, "eval_acc": 0.5, "evaluate": 6}),
        )
        assert named == {
            "loss": 0.1,
            "accuracy": 0.9,
            "train_loss": 0.2,
            "train_acc": 0.3,
            "eval_loss": 0.4,
            "eval_acc": 0.5,
            "evaluate": 6.0,
        }

    def test_nothing_is_overwritten(self) -> None:
        named = history(
            server=MetricRecord({"train_loss": 1.0}),
            train=MetricRecord({"loss": 2.0, "train_loss": 3.0}),
        )
        assert sorted(named.values()) == [1, 2, 3]
        assert named["train_loss"] == 1

    def test_lists_are_left_out(self) -> None:
        assert history(train=MetricRecord({"per-class": [1.0], "n": 2})) == {"train_n": 2.0}
        assert history() == {}


class Interrupted(Exception):
    """The attempt ends here."""


class Breaking(GridDouble):
    """Ends the attempt at the n-th call of a method."""

    left: tuple[str, int] | None = None

    def __init__(self, answer: Answer, **options: Any) -> None:
        super().__init__(answer, **options)
        self.sizes_read: set[int] = set()

    def read(self, object_hash: ObjectHash, into: memoryview) -> None:
        self.sizes_read.add(len(into))
        super().read(object_hash, into)

    def _count(self, name: str) -> None:
        if self.left is not None and self.left[0] == name:
            self.left = (name, self.left[1] - 1) if self.left[1] else None
            if self.left is None:
                raise Interrupted

    def push(self, push: Any) -> Any:
        self._count("push")
        return super().push(push)

    def wait(self, seconds: float) -> None:
        self._count("wait")
        super().wait(seconds)

    def commit_round(self, checkpoint: Checkpoint) -> None:
        self._count("before commit")
        super().commit_round(checkpoint)
        self._count("after commit")


POINTS = [(name, count) for name in ("push", "wait", "before commit", "after commit") for count in range(4)]


class TestRestart:
    def train(self, door: GridDouble, start: ArrayRecord = START) -> Result:
        return FedAvg().start(Grid(door), start, num_rounds=3, evaluate_fn=measured)

    @pytest.mark.parametrize("point", POINTS)
    def test_ends_the_same_wherever_it_was_interrupted(self, point: tuple[str, int]) -> None:
        undisturbed = GridDouble(ANSWER)
        expected = self.train(undisturbed)
        door = Breaking(ANSWER)
        door.left = point
        with pytest.raises(Interrupted):
            self.train(door)
        result = self.train(door)
        assert result == expected
        assert [push.content_hash for push in door.pushes] == [push.content_hash for push in undisturbed.pushes]
        assert [saved.round for saved in door.checkpoints] == [0, 1, 2, 3]
        assert door.metrics == undisturbed.metrics
        assert len(door.done) == 12  # no node did anything twice

    def test_a_long_history_comes_back_and_is_read_for_that_only(self) -> None:
        def long(server_round: int, _arrays: ArrayRecord) -> MetricRecord:
            return MetricRecord({"loss": 0.5, "per-class": [server_round + 0.123456789] * 1000})

        def train(door: GridDouble) -> Result:
            return FedAvg().start(Grid(door), START, num_rounds=6, evaluate_fn=long)

        expected = train(GridDouble(ANSWER))
        door = Breaking(ANSWER)
        door.left = ("after commit", 5)
        with pytest.raises(Interrupted):
            train(door)
        model = START["0"].nbytes
        assert sum(len(content) != model for content in door.stored.values()) >= 2, "pages are objects"
        assert door.sizes_read == {model}
        assert train(door) == expected
        assert door.sizes_read > {model}

    @pytest.mark.parametrize("commits", range(5))
    def test_pages_of_a_history_are_objects_in_all_commits_after(self, commits: int) -> None:
        def long(server_round: int, _arrays: ArrayRecord) -> MetricRecord:
            return MetricRecord({"loss": 0.5, "per-class": [server_round + 0.123456789] * 2000})

        def train(door: GridDouble) -> None:
            grid = Grid(door)
            for _ in range(2):
                FedAvg().start(grid, START, num_rounds=2, evaluate_fn=long)

        door = Breaking(ANSWER)
        door.left = ("after commit", commits)
        with pytest.raises(Interrupted):
            train(door)
        train(door)
        model = START["0"].nbytes
        pages = [{name for name in saved.objects if len(door.stored[name]) != model} for saved in door.checkpoints]
        assert all(before <= after for before, after in itertools.pairwise(pages))
        # the second training begins with a page of rounds 0 and 1, and its round 2 is the very object of the first one
        assert [len(names) for names in pages] == [1, 2, 3, 4, 4]
        assert all(len(saved.state) < 16_000 for saved in door.checkpoints)

    def test_the_initial_model_is_that_of_the_first_attempt(self) -> None:
        door = Breaking(ANSWER)
        door.left = ("push", 0)
        with pytest.raises(Interrupted):
            self.train(door)
        assert self.train(door, ArrayRecord([np.full(20_000, 99.0)])).arrays["0"].numpy()[0] == 7.5

    def test_a_finished_training_is_not_done_again(self) -> None:
        door = GridDouble(ANSWER)
        first = self.train(door)
        assert self.train(door) == first
        assert door.calls["push"] == 6

    def test_another_attempt_that_took_over_ends_this_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        door = GridDouble(ANSWER)

        def fenced(_checkpoint: Checkpoint) -> None:
            raise AttemptFenced

        monkeypatch.setattr(door, "commit_round", fenced)
        with pytest.raises(AttemptFenced):
            self.train(door)

    def test_each_round_is_committed_with_its_metrics(self) -> None:
        door = GridDouble(ANSWER)
        self.train(door)
        assert door.checkpoints[0].metrics == {"loss": 0.0, "accuracy": 0.75}
        assert door.checkpoints[2].metrics == {"loss": 5.0, "accuracy": 0.75, "train_loss": 0.5, "eval_loss": 0.5}
        assert [saved.next_sequence for saved in door.checkpoints] == [1, 4, 7, 10]
        assert [push.round for push in door.pushes] == [1, 1, 2, 2, 3, 3]

    @pytest.mark.parametrize(
        "point", [("push", 9), ("before commit", 5), ("after commit", 4), ("push", 6), ("wait", 13)]
    )
    def test_several_trainings_in_one_run_go_on_in_the_right_one(self, point: tuple[str, int]) -> None:
        def both(door: GridDouble) -> tuple[Result, Result]:
            grid = Grid(door)
            first = FedAvg().start(grid, START, num_rounds=3, evaluate_fn=measured)
            grid.push_messages([Message(RecordDict(), 2, "query")])  # a step between the two
            second = FedAvg().start(grid, first.arrays, num_rounds=2)
            return first, second

        undisturbed, door = GridDouble(ANSWER), Breaking(ANSWER)
        expected = both(undisturbed)
        door.left = point
        with pytest.raises(Interrupted):
            both(door)
        assert both(door) == expected
        assert expected[1].arrays["0"].numpy()[0] == 12.5
        assert [push.content_hash for push in door.pushes] == [push.content_hash for push in undisturbed.pushes]
        assert [saved.round for saved in door.checkpoints] == [0, 1, 2, 3, 4, 5]
        assert door.planned[-1] == 5

    def test_state_of_a_strategy_is_kept(self) -> None:
        class Counting(FedAvg):
            count = 0

            def aggregate_train(
                self, server_round: int, replies: Iterable[Message]
            ) -> tuple[ArrayRecord | None, MetricRecord | None]:
                self.count += 1
                return super().aggregate_train(server_round, replies)

            def save_state(self) -> RecordDict:
                return RecordDict({"counter": MetricRecord({"count": self.count})})

            def load_state(self, state: RecordDict) -> None:
                self.count = int(state.metric_records["counter"]["count"])  # type: ignore[arg-type]

        door = Breaking(ANSWER)
        door.left = ("before commit", 3)
        with pytest.raises(Interrupted):
            Counting().start(Grid(door), START, num_rounds=3)
        again = Counting()
        again.start(Grid(door), START, num_rounds=3)
        assert again.count == 3

    def test_a_checkpoint_of_the_apps_own_is_none_of_ours(self) -> None:
        door = GridDouble(ANSWER)
        Grid(door).commit_round(0, RecordDict({"mine": MetricRecord({"x": 1})}), {})
        assert self.train(door).arrays["0"].numpy()[0] == 7.5

    def test_a_checkpoint_that_is_broken_is_said_to_be(self) -> None:
        door = GridDouble(ANSWER)
        Grid(door).commit_round(1, RecordDict({"flq": ConfigRecord({"training": "x", "round": 1})}), {})
        with pytest.raises(StrategyError, match="checkpoint"):
            self.train(door)

    def test_the_choice_of_nodes_does_not_depend_on_where_an_attempt_began(self) -> None:
        def chosen(door: GridDouble) -> list[tuple[int, ...]]:
            return [push.node_ids for push in door.pushes]

        def train(door: GridDouble) -> None:
            strategy = FedAvg(fraction_train=0.3, fraction_evaluate=0.3)
            strategy.start(Grid(door), ArrayRecord([np.zeros(2)]), num_rounds=3)

        ids = tuple(range(2, 22))
        answer = nodes_of(adding_app(), {}, ids)
        undisturbed, door = GridDouble(answer, node_ids=ids), Breaking(answer, node_ids=ids)
        train(undisturbed)
        door.left = ("before commit", 2)
        with pytest.raises(Interrupted):
            train(door)
        train(door)
        assert chosen(door) == chosen(undisturbed)
        assert len(set(chosen(door))) > 3


def test_a_grid_of_flq_is_durable() -> None:
    grid = Grid(GridDouble(ANSWER))
    assert isinstance(grid, DurableGrid)
    plain: MessageGrid = grid
    assert plain.get_node_ids() == [2, 3]


def test_a_result_tells_what_is_in_it() -> None:
    told = repr(FedAvg().start(PlainGrid(), START, num_rounds=1, evaluate_fn=measured))
    assert "1 arrays, 160001 bytes" in told
    assert "evaluate (server), round 0: {'loss': 0.0, 'accuracy': 0.75}" in told
