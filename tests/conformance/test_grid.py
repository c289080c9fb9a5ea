"""What every implementation of `flq.wire.grid.Grid` does."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from flq.errors import AttemptFenced, LinkError, NodeUnknown, ObjectsMissing
from flq.link import attempts
from flq.wire.fleet import Fleet, HostedNode, Lease, NodeSpec
from flq.wire.grid import Checkpoint, Delivered, Delivery, DeliveryKind, Grid, Step, StepKind
from flq.wire.ids import BatchId, NodeId
from flq.wire.runs import FeedCursor
from flq.wire.status import ResultStatus, Verdict
from tests.conformance.conftest import House
from tests.integration import link_acts as act
from tests.waiting import eventually


def connected(house: House, *names: str) -> tuple[Fleet, list[HostedNode]]:
    fleet = house.fleet()
    return fleet, fleet.connect(act.process(), [NodeSpec(name=name, labels={"site": name}) for name in names])


def claimed(fleet: Fleet, hosted: list[HostedNode]) -> list[Lease]:
    nodes = [node.node_id for node in hosted]
    return list(fleet.claim(nodes, per_node=10, total=100, token=act.token()).leases)


def checkpoint(number: int, **changes: object) -> Checkpoint:
    values: dict[str, object] = {
        "round": number, "state": b"state %d" % number, "objects": frozenset(), "metrics": {"loss": 1.0 / (number + 1)},
        "next_sequence": number,
    }  # fmt: skip
    return Checkpoint(**{**values, **changes})  # type: ignore[arg-type]


def test_the_run_and_the_nodes_that_it_may_use_are_shown(house: House):
    _, hosted = connected(house, "a", "b")
    grid, claim = house.grid()
    assert (grid.run().run_id, grid.run().name) == (claim.run.run_id, claim.run.name)
    assert [(n.node_id, n.name, dict(n.labels)) for n in grid.nodes()] == [
        (node.node_id, node.name, {"site": node.name}) for node in sorted(hosted, key=lambda node: node.node_id)
    ]


def test_a_push_is_all_or_nothing_and_a_repeated_one_finds_the_first(house: House):
    fleet, hosted = connected(house, "a", "b")
    grid, _ = house.grid()
    nodes = [node.node_id for node in hosted]
    with pytest.raises(NodeUnknown):
        grid.push(act.push(*nodes, NodeId(999)))
    name = act.object_of(b"model")
    push = act.push(*nodes, objects=frozenset([name]), manifests=(b"for a", b"for b"))
    with pytest.raises(ObjectsMissing):
        grid.push(push)
    assert claimed(fleet, hosted) == []
    assert grid.missing([name]) == {name}
    grid.put(name, memoryview(b"model"))
    first = grid.push(push)
    again = grid.push(push)
    assert (again.batch_id, again.task_ids, first.replayed, again.replayed) == (
        first.batch_id, first.task_ids, False, True,
    )  # fmt: skip
    assert [lease.manifest for lease in claimed(fleet, hosted)] == [b"for a", b"for b"]
    into = bytearray(5)
    grid.read(name, memoryview(into))
    assert (bytes(into), grid.size(name)) == (b"model", 5)


def test_steps_come_back_with_what_was_delivered_before_them(house: House):
    _, hosted = connected(house, "a", "b")
    grid, _ = house.grid()
    assert grid.steps() == []
    nodes = tuple(grid.nodes())
    shown = Delivery(kind=DeliveryKind.NODES, node_list=b"both", times=3)
    first = grid.push(
        act.push(*(node.node_id for node in hosted), sequence=0, delivered=Delivered((shown,), {b"both": nodes}))
    )
    one, two = first.task_ids
    pulls = (
        Delivery(kind=DeliveryKind.PULLED, times=7),
        Delivery(kind=DeliveryKind.PULLED, task_ids=(two, one), timed_out=(one,)),
        Delivery(kind=DeliveryKind.RECEIVED, task_ids=(one, two), timed_out=(one, two)),
    )
    grid.commit_round(checkpoint(1, next_sequence=2, first_sequence=None, delivered=Delivered(pulls)))
    grid.push(act.push(hosted[0].node_id, sequence=2))
    assert grid.steps() == [
        Step(0, StepKind.PUSH, (shown,)),
        Step(1, StepKind.CHECKPOINT, pulls),
        Step(2, StepKind.PUSH, ()),
    ]
    assert grid.node_list(b"both") == nodes
    with pytest.raises(LinkError):
        grid.node_list(b"none")


def test_steps_that_a_checkpoint_leaves_out_are_not_repeated_save_the_first(house: House):
    _, hosted = connected(house, "a")
    grid, _ = house.grid()
    node_id = hosted[0].node_id
    for number in range(4):
        grid.push(act.push(node_id, sequence=number))
    grid.commit_round(checkpoint(1, next_sequence=5, first_sequence=1))
    grid.push(act.push(node_id, sequence=5))
    assert [step.sequence for step in grid.steps()] == [0, 1, 5]


def test_a_step_that_diverges_takes_those_before_it_into_a_branch_of_its_own(house: House):
    fleet, hosted = connected(house, "a")
    grid, _ = house.grid()
    node_id = hosted[0].node_id
    pushes = [grid.push(act.push(node_id, sequence=number, group=f"old {number}")) for number in range(3)]
    new = grid.push(act.push(node_id, sequence=1, group="new"))
    assert not new.replayed
    assert grid.push(act.push(node_id, sequence=0, group="old 0")).task_ids == pushes[0].task_ids
    assert grid.push(act.push(node_id, sequence=1, group="new")).task_ids == new.task_ids
    assert [step.sequence for step in grid.steps()] == [0, 1]
    assert [lease.group for lease in claimed(fleet, hosted)] == ["old 0", "new"]


def test_tasks_that_ended_without_a_reply_can_be_issued_anew(house: House):
    fleet, hosted = connected(house, "a", "b")
    grid, _ = house.grid()
    pushed = grid.push(act.push(*(node.node_id for node in hosted)))
    first = next(lease for lease in claimed(fleet, hosted) if lease.key.task_id == pushed.task_ids[0])
    fleet.submit([act.reply(first)])
    assert grid.cancel([pushed.batch_id]) == 1
    assert grid.reissue(pushed.batch_id, pushed.task_ids, 60.0) == 1
    assert grid.reissue(pushed.batch_id, pushed.task_ids, 60.0) == 0

    leases: list[Lease] = []

    def look() -> list[Lease]:
        fleet.wait(0)  # the nodes are told, as they are of a push
        leases.extend(claimed(fleet, hosted))
        return leases

    eventually(look, what="a claim of what was issued anew")
    (again,) = leases
    assert (again.key.task_id, again.attempt) == (pushed.task_ids[1], 2)
    assert fleet.submit([act.reply(again)]) == {again.key.task_id: Verdict.ACCEPTED}
    keys = grid.arrived([pushed.batch_id], FeedCursor()).keys
    assert {key.status for key in keys} == {ResultStatus.OK}


def test_each_result_is_told_once_and_read_in_the_order_asked_for(house: House):
    fleet, hosted = connected(house, "a", "b")
    grid, _ = house.grid()
    pushed = grid.push(act.push(*(node.node_id for node in hosted)))
    one, two = claimed(fleet, hosted)
    fleet.submit([act.reply(one, b"one")])
    first = grid.arrived([pushed.batch_id], FeedCursor())
    fleet.submit([act.reply(two, status=ResultStatus.ERROR, error_code=8, error_text="no")])
    second = grid.arrived([pushed.batch_id], first.cursor)
    assert [[key.task_id for key in page.keys] for page in (first, second)] == [[one.key.task_id], [two.key.task_id]]
    found = grid.results([*second.keys, *first.keys])
    assert [(r.status, r.manifest, r.error_code, r.error_text) for r in found] == [
        (ResultStatus.ERROR, b"", 8, "no"),
        (ResultStatus.OK, b"one", None, None),
    ]


def test_a_result_ends_a_wait(house: House):
    fleet, hosted = connected(house, "a")
    grid, _ = house.grid()
    pushed = grid.push(act.push(hosted[0].node_id))
    (lease,) = claimed(fleet, hosted)
    assert grid.arrived([pushed.batch_id], FeedCursor()).keys == ()
    waiter = threading.Thread(target=grid.wait, args=(60,))
    waiter.start()
    fleet.submit([act.reply(lease)])
    waiter.join(20)
    assert not waiter.is_alive()


def test_cancelled_tasks_are_counted_and_end_as_results(house: House):
    fleet, hosted = connected(house, "a", "b")
    grid, _ = house.grid()
    pushed = grid.push(act.push(*(node.node_id for node in hosted)))
    assert grid.cancel([pushed.batch_id]) == 2
    assert grid.cancel([pushed.batch_id]) == 0
    assert {key.status for key in grid.arrived([pushed.batch_id], FeedCursor()).keys} == {ResultStatus.CANCELLED}
    assert claimed(fleet, hosted) == []


def test_exactly_one_commit_of_a_round_counts(house: House):
    grid, claim = house.grid()
    assert grid.last_checkpoint() is None
    grid.plan_rounds(3)
    with pytest.raises(ObjectsMissing):
        grid.commit_round(checkpoint(1, objects=frozenset([act.object_of(b"model")])))
    grid.put(act.object_of(b"model"), memoryview(b"model"))
    first = checkpoint(1, objects=frozenset([act.object_of(b"model")]))
    grid.commit_round(first)
    grid.commit_round(checkpoint(1, state=b"another"))
    assert grid.last_checkpoint() == first
    grid.record_metrics(0, {"loss": 2.0})
    grid.record_metrics(1, {"loss": 0.1})
    row = house.control().run(claim.run.name)
    assert (row.rounds_planned, row.rounds_done) == (3, 1)


def test_an_artifact_is_replaced_by_a_later_one_of_its_name(house: House):
    grid, claim = house.grid()
    for data in (b"first", b"second"):
        with pytest.raises(ObjectsMissing):
            grid.put_artifact("model.bin", act.object_of(data))
        grid.put(act.object_of(data), memoryview(data))
        grid.put_artifact("model.bin", act.object_of(data))
    into = bytearray(6)
    house.control().artifact(claim.run.name, "model.bin", memoryview(into))
    assert into == b"second"


WRITES: dict[str, Callable[[Grid, NodeId], object]] = {
    "push": lambda grid, node: grid.push(act.push(node)),
    "cancel": lambda grid, _: grid.cancel([]),
    "reissue": lambda grid, _: grid.reissue(BatchId(1), [], 60.0),
    "plan_rounds": lambda grid, _: grid.plan_rounds(9),
    "commit_round": lambda grid, _: grid.commit_round(checkpoint(7)),
    "record_metrics": lambda grid, _: grid.record_metrics(1, {"loss": 9.0}),
    "put_artifact": lambda grid, _: grid.put_artifact("late.bin", act.object_of(b"late")),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_replaced_attempt_writes_nothing(house: House, write: str):
    _, hosted = connected(house, "a")
    grid, claim = house.grid()
    grid.put(act.object_of(b"late"), memoryview(b"late"))
    attempts.release(house.db, run_id=claim.run.run_id, token=claim.token, reason="a test")
    with pytest.raises(AttemptFenced):
        WRITES[write](grid, hosted[0].node_id)
    control = house.control()
    row = control.run(claim.run.name)
    assert (row.rounds_planned, row.rounds_done, row.tasks_open) == (None, 0, 0)
    assert (control.artifacts(claim.run.name), control.rounds(claim.run.name)) == ([], [])
