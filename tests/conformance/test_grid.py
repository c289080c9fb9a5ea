"""What every implementation of `flq.wire.grid.Grid` does."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from flq.errors import AttemptFenced, NodeUnknown, ObjectsMissing
from flq.link import attempts
from flq.wire.fleet import Fleet, HostedNode, Lease, NodeSpec
from flq.wire.grid import Checkpoint, Grid
from flq.wire.ids import NodeId
from flq.wire.runs import FeedCursor
from flq.wire.status import ResultStatus
from tests.conformance.conftest import House
from tests.integration import link_acts as act


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
