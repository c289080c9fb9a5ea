"""What a later attempt is given, with a stand-in for the SuperLink."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from flq.apps import ArrayRecord, ConfigRecord, Context, Grid, Message, MetricRecord, RecordDict
from flq.apps.checkpoints import Checkpoints
from flq.apps.deliveries import PATIENCE_SECONDS
from flq.apps.inbox import Inbox
from flq.apps.strategy import FedAvg
from flq.errors import AppError
from flq.wire.grid import DeliveryKind, StepKind
from flq.wire.status import ResultStatus
from tests.grid_double import GridDouble


def echo(message: Message) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord([np.full(20_000, message.metadata.dst_node_id, np.float64)])})


def to(*node_ids: int, number: int = 0) -> list[Message]:
    content = RecordDict({"config": ConfigRecord({"number": number})})
    return [Message(content, node_id, "query") for node_id in node_ids]


def nodes_of(replies: list[Message]) -> list[int]:
    return [reply.metadata.src_node_id for reply in replies]


def grid_of(door: GridDouble) -> Grid:
    grid = Grid(door)
    grid._inbox = Inbox(door, door.fetch, clock=lambda: door.now)
    return grid


def context_of(grid: Grid) -> Context:
    return Context(7, 1, {}, RecordDict(), {}, checkpoints=Checkpoints(grid))


class TestLists:
    def test_a_list_that_changed_meanwhile_is_the_old_one(self) -> None:
        door = GridDouble(echo)
        grid = Grid(door)
        seen = [grid.get_node_ids()]
        door.node_ids = (2, 3, 4)
        seen += [grid.get_node_ids(), grid.get_node_ids()]
        grid.push_messages(to(2))
        door.node_ids = (3,)
        again = Grid(door)
        assert [again.get_node_ids() for _ in range(3)] == seen == [[2, 3], [2, 3, 4], [2, 3, 4]]
        again.push_messages(to(2))
        assert again.get_node_ids() == [3]

    def test_one_list_is_kept_once_however_often_it_is_seen(self) -> None:
        door = GridDouble(echo)
        grid = Grid(door)
        for _ in range(3):
            grid.get_nodes()
            grid.get_nodes()
            grid.push_messages(to(2))
        assert len(door.node_lists) == 1
        assert [len(push.delivered.node_lists) for push in door.pushes] == [1, 0, 0]
        ((delivery,),) = {push.delivered.deliveries for push in door.pushes}
        assert (delivery.kind, delivery.times) == (DeliveryKind.NODES, 2)

    def test_who_asks_once_more_sees_the_last_one(self) -> None:
        door = GridDouble(echo)
        grid = Grid(door)
        grid.get_node_ids()
        grid.push_messages(to(2))
        door.node_ids = (4,)
        again = grid_of(door)
        assert [again.get_node_ids() for _ in range(2)] == [[2, 3], [2, 3]]

    def test_a_list_that_nobody_saw_is_the_present_one(self) -> None:
        door = GridDouble(echo)
        Grid(door).push_messages(to(2))
        door.node_ids = (4,)
        assert Grid(door).get_node_ids() == [4]


class TestPulls:
    def test_bring_the_same_sets_in_the_same_order(self) -> None:
        door = GridDouble(echo, node_ids=(2, 3, 4), newest_first=True)
        grid = Grid(door)
        ids = grid.push_messages(to(2, 3, 4))
        sets = []
        for _ in range(3):
            sets += [nodes_of(grid.pull_messages(ids)), nodes_of(grid.pull_messages(ids))]
            door.do_one()
        sets.append(nodes_of(grid.pull_messages(ids)))
        grid.push_messages(to(2, number=1))
        again = Grid(door)
        assert again.push_messages(to(2, 3, 4)) == ids
        assert [nodes_of(again.pull_messages(ids)) for _ in sets] == sets
        assert sets == [[], [], [4], [], [3], [], [2]]

    def test_there_is_no_waiting_for_what_was_delivered_before(self) -> None:
        door = GridDouble(echo)
        grid = Grid(door)
        ids = grid.push_messages(to(2))
        grid.pull_messages(ids)
        door.do_one()
        grid.pull_messages(ids)
        grid.push_messages(to(3))
        again = Grid(door)
        again.push_messages(to(2))
        waits = door.calls["wait"]
        while not again.pull_messages(ids):
            again.wait(5)
        assert door.calls["wait"] == waits

    def test_who_asks_in_vain_for_long_is_given_what_there_is(self, caplog: pytest.LogCaptureFixture) -> None:
        door = GridDouble(echo)
        grid = Grid(door)
        ids = grid.push_messages(to(2, 3))
        door.do_one()
        assert nodes_of(grid.pull_messages(ids)) == [2]
        grid.push_messages(to(2, number=1))  # it did not wait for the other one
        door.do_one()
        again = grid_of(door)
        again.push_messages(to(2, 3))
        got = nodes_of(again.pull_messages(ids))
        assert (got, again.pull_messages(ids)) == ([2], [])
        with caplog.at_level(logging.WARNING):
            door.now += PATIENCE_SECONDS
            assert nodes_of(again.pull_messages(ids)) == [3]
        assert "asks for more" in caplog.text
        again.push_messages(to(2, number=2))
        assert door.diverged == [1]

    def test_a_reply_of_an_odd_order_is_recorded_as_it_came(self) -> None:
        door = GridDouble(echo)
        grid = Grid(door)
        one, two = grid.push_messages(to(2, 3))
        while door.open:
            door.do_one()
        grid.pull_messages([two, one])
        grid.push_messages(to(2))
        (delivery,) = door.pushes[-1].delivered.deliveries
        assert (delivery.kind, delivery.task_ids) == (DeliveryKind.PULLED, (int(two), int(one)))


class TestTimeOuts:
    def test_a_recorded_time_out_is_one_again(self) -> None:
        door = GridDouble(echo)
        grid = grid_of(door)
        replies = grid.send_and_receive(to(2, 3), timeout=10)
        door.do_one()
        door.idle = True
        assert [reply.has_error() for reply in replies] == [False, True]
        grid.push_messages(to(2, number=1))
        (delivery,) = door.pushes[-1].delivered.deliveries
        assert (delivery.kind, len(delivery.task_ids)) == (DeliveryKind.RECEIVED, 2)
        assert delivery.timed_out == delivery.task_ids[1:]
        again = grid_of(door)
        replies = again.send_and_receive(to(2, 3), timeout=10)
        assert [reply.has_error() for reply in replies] == [False, True]
        assert door.reissued == []

    @pytest.mark.parametrize("status", [ResultStatus.CANCELLED, ResultStatus.EXPIRED])
    def test_one_that_nobody_was_told_of_is_issued_anew(self, status: ResultStatus) -> None:
        door = GridDouble(echo)
        Grid(door).push_messages(to(2, 3))
        ended = door.open.pop()
        door.finish(ended, status)
        again = Grid(door)
        ids = again.push_messages(to(2, 3))
        assert door.reissued == [ended.task_id]
        while door.open:
            door.do_one()
        assert [reply.has_error() for reply in again.pull_messages(ids)] == [False, False]

    def test_an_error_is_replayed(self) -> None:
        door = GridDouble(lambda _message: ResultStatus.ERROR)
        Grid(door).push_messages(to(2))
        door.do_one()
        again = Grid(door)
        (reply,) = again.pull_messages(again.push_messages(to(2)))
        assert (reply.has_error(), door.reissued) == (True, [])


class TestDivergence:
    def test_the_rest_of_the_record_is_void(self) -> None:
        door = GridDouble(echo)
        grid = Grid(door)
        for number in range(3):
            grid.get_node_ids()
            grid.push_messages(to(2, number=number))
        door.node_ids = (9,)
        again = Grid(door)
        assert again.get_node_ids() == [2, 3]
        again.push_messages(to(2, number=0))
        assert again.get_node_ids() == [2, 3]
        again.push_messages(to(2, number=8))
        assert door.diverged == [1]
        assert again.get_node_ids() == [9]
        again.push_messages(to(2, number=9))
        assert [delivery.node_list for delivery in door.recorded[1].deliveries] != [
            delivery.node_list for delivery in door.recorded[2].deliveries
        ]

    def test_a_commit_where_a_push_was(self) -> None:
        door = GridDouble(echo)
        Grid(door).push_messages(to(2))
        Grid(door).commit_round(1, RecordDict(), {})
        assert (door.diverged, door.recorded[0].kind) == ([0], StepKind.CHECKPOINT)


class TestCheckpoints:
    def test_a_loop_goes_on_behind_the_last_one(self) -> None:
        door = GridDouble(echo)
        context = context_of(grid := Grid(door))
        assert context.restored is None
        for number in (1, 2):
            grid.push_messages(to(2, number=number))
            context.checkpoint(RecordDict({"loop": MetricRecord({"done": number})}), metrics={"loss": 0.5})
        again = Grid(door)
        context = context_of(again)
        assert context.restored == RecordDict({"loop": MetricRecord({"done": 2})})
        assert (again.sequence, context.restored is context.restored) == (4, True)
        context.checkpoint(RecordDict())
        assert [(saved.round, saved.metrics) for saved in door.checkpoints] == [
            (1, {"loss": 0.5}), (2, {"loss": 0.5}), (3, {}),
        ]  # fmt: skip

    def test_what_came_before_the_look_at_it_is_repeated(self) -> None:
        door = GridDouble(echo)

        def main(grid: Grid) -> tuple[list[int], Any]:
            context = context_of(grid)
            (reply,) = grid.send_and_receive(to(2))
            nodes = grid.get_node_ids()
            restored = context.restored
            if restored is None:
                grid.push_messages(to(3, number=1))
                context.checkpoint(RecordDict())
            return nodes, (reply.content, restored is None)

        first = main(Grid(door))
        door.node_ids = (5,)
        second = main(Grid(door))
        assert (first[0], second[0]) == ([2, 3], [2, 3])
        assert (first[1], second[1]) == ((first[1][0], True), (first[1][0], False))
        assert len(door.pushes) == 2
        assert door.checkpoints[0].first_sequence == 1

    def test_without_a_look_at_it_everything_is_repeated_and_kept(self) -> None:
        door = GridDouble(echo)

        def main(grid: Grid) -> None:
            context = context_of(grid)
            for number in range(3):
                grid.push_messages(to(2, number=number))
                context.checkpoint(RecordDict({"loop": MetricRecord({"done": number})}))

        main(Grid(door))
        main(Grid(door))
        assert (len(door.pushes), len(door.checkpoints), door.diverged) == (3, 3, [])
        assert {saved.first_sequence for saved in door.checkpoints} == {None}

    def test_replies_that_are_still_to_be_pulled_outlive_it(self) -> None:
        door = GridDouble(echo)
        context = context_of(grid := Grid(door))
        assert context.restored is None
        ids = grid.push_messages(to(2, 3))
        done = grid.push_messages(to(2, number=1))
        door.do_one()
        assert nodes_of(grid.pull_messages(ids)) == [2]
        while door.open:
            door.do_one()
        grid.pull_messages(done)
        context.checkpoint(RecordDict())
        _, pushed = door.batches[0]
        assert door.checkpoints[0].open_batches == {pushed.batch_id}
        again = Grid(door)
        assert context_of(again).restored is not None
        assert nodes_of(again.pull_messages(ids)) == [3]
        again.commit_round(2, RecordDict(), {})
        assert door.checkpoints[1].open_batches == frozenset()
        assert door.checkpoints[1].open_from is not None

    def test_replies_that_somebody_iterates_over_outlive_it(self) -> None:
        door = GridDouble(echo)
        grid = Grid(door)
        replies = grid.send_and_receive(to(2))
        grid.commit_round(1, RecordDict(), {})
        assert len(door.checkpoints[0].open_batches) == 1
        assert len(list(replies)) == 1
        del replies
        grid.commit_round(2, RecordDict(), {})
        assert door.checkpoints[1].open_batches == frozenset()
        assert door.checkpoints[1].open_from == 0

    @pytest.mark.parametrize(("first", "number"), [(4, -1), (4, 4), (4, 3), (0, 0)])
    def test_rounds_rise(self, first: int, number: int) -> None:
        context = context_of(Grid(GridDouble(echo)))
        context.checkpoint(RecordDict(), round=first)
        with pytest.raises(AppError, match="cannot be made"):
            context.checkpoint(RecordDict(), round=number)

    def test_without_a_number_rounds_are_counted_from_one(self) -> None:
        door = GridDouble(echo)
        context = context_of(Grid(door))
        context.checkpoint(RecordDict())
        context.checkpoint(RecordDict(), round=5)
        context.checkpoint(RecordDict())
        assert [saved.round for saved in door.checkpoints] == [1, 5, 6]

    def test_it_is_looked_at_before_the_loop(self) -> None:
        context = context_of(Grid(GridDouble(echo)))
        context.checkpoint(RecordDict())
        with pytest.raises(AppError, match="behind a checkpoint"):
            _ = context.restored

    def test_a_clientapp_has_none(self) -> None:
        context = Context(7, 2, {}, RecordDict(), {})
        with pytest.raises(AppError, match="only the ServerApp"):
            context.checkpoint(RecordDict())
        with pytest.raises(AppError, match="only the ServerApp"):
            _ = context.restored

    def test_a_run_has_those_of_strategies_or_its_own(self) -> None:
        def train(grid: Grid) -> None:
            FedAvg(fraction_train=0, fraction_evaluate=0).start(grid, ArrayRecord([np.zeros(2)]), num_rounds=1)

        grid = Grid(GridDouble(echo))
        context_of(grid).checkpoint(RecordDict())
        with pytest.raises(AppError, match=r"Strategy\.start"):
            train(grid)
        door = GridDouble(echo)
        Grid(door).begin_training(1)
        grid = Grid(door)
        grid.begin_training(1)
        grid.commit_round(0, RecordDict(), {})
        with pytest.raises(AppError, match=r"Strategy\.start"):
            context_of(grid).checkpoint(RecordDict())
        with pytest.raises(AppError, match=r"not one of context\.checkpoint"):
            _ = context_of(Grid(door)).restored
