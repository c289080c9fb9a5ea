"""What every implementation of `flq.wire.fleet.Fleet` does."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import pytest

from flq.errors import LinkError, NodeUnknown, ObjectCorrupt, ObjectsMissing, ObjectUnknown, RunUnknown
from flq.link import attempts, states
from flq.wire.fleet import Fleet, HostedNode, Lease, NodeSpec, StateBase, StateVersion
from flq.wire.ids import RunId
from flq.wire.runs import FeedCursor, LogLine
from flq.wire.status import Outcome, ResultStatus, Verdict
from tests.conformance.conftest import House
from tests.integration import link_acts as act
from tests.waiting import eventually


def connected(house: House, *names: str) -> tuple[Fleet, list[HostedNode]]:
    fleet = house.fleet()
    return fleet, fleet.connect(act.process(), [NodeSpec(name=name) for name in names])


def test_a_node_keeps_its_id_and_its_epoch_rises_with_each_process_that_hosts_it(house: House):
    fleet = house.fleet()
    spec = act.process()
    first = fleet.connect(spec, [NodeSpec(name="b"), NodeSpec(name="a")])
    assert [node.name for node in first] == ["b", "a"]
    assert fleet.connect(spec, [NodeSpec(name="b"), NodeSpec(name="a")]) == first
    _, second = connected(house, "a")
    assert (second[0].node_id, second[0].epoch) == (first[1].node_id, first[1].epoch + 1)


def test_what_has_not_connected_can_do_nothing(house: House):
    fleet = house.fleet()
    for call in (fleet.heartbeat, lambda: fleet.wait(0), lambda: fleet.claim([], per_node=1, total=1, token=1)):
        with pytest.raises(LinkError):
            call()


def test_a_claim_for_a_node_that_it_does_not_host_is_refused(house: House):
    fleet, _ = connected(house, "a")
    _, others = connected(house, "b")
    with pytest.raises(NodeUnknown):
        fleet.claim([others[0].node_id], per_node=1, total=1, token=act.token())


def test_a_claimed_task_is_nobody_elses_and_a_repeated_claim_brings_it_again(house: House):
    fleet, hosted = connected(house, "a", "b")
    grid, _ = house.grid()
    nodes = [node.node_id for node in hosted]
    pushed = grid.push(act.push(*nodes))
    token = act.token()
    first = fleet.claim(nodes, per_node=3, total=10, token=token)
    assert {lease.key.task_id for lease in first.leases} == set(pushed.task_ids)
    assert fleet.claim(nodes, per_node=3, total=10, token=token) == first
    assert fleet.claim(nodes, per_node=3, total=10, token=act.token()).leases == ()


def test_a_submit_is_accepted_once_and_a_duplicate_after_that(house: House):
    fleet, hosted = connected(house, "a")
    grid, _ = house.grid()
    pushed = grid.push(act.push(hosted[0].node_id))
    (lease,) = fleet.claim([hosted[0].node_id], per_node=1, total=1, token=act.token()).leases
    reply = act.reply(lease, metrics={"loss": 0.5})
    assert fleet.renew([lease.key]).lost == frozenset()
    assert fleet.submit([reply]) == {lease.key.task_id: Verdict.ACCEPTED}
    assert fleet.submit([reply]) == {lease.key.task_id: Verdict.DUPLICATE}
    assert fleet.renew([lease.key]).lost == {lease.key.task_id}
    (key,) = grid.arrived([pushed.batch_id], FeedCursor()).keys
    assert (key.task_id, key.status) == (lease.key.task_id, ResultStatus.OK)


def test_a_released_task_comes_again_as_the_next_attempt(house: House):
    fleet, hosted = connected(house, "a")
    grid, _ = house.grid()
    grid.push(act.push(hosted[0].node_id))
    (lease,) = fleet.claim([hosted[0].node_id], per_node=1, total=1, token=act.token()).leases
    fleet.release([lease.key])
    (again,) = fleet.claim([hosted[0].node_id], per_node=1, total=1, token=act.token()).leases
    assert (again.key.task_id, again.attempt) == (lease.key.task_id, 2)
    assert fleet.submit([act.reply(lease)]) == {lease.key.task_id: Verdict.FENCED}


def test_a_process_whose_node_was_taken_over_is_told_and_changes_nothing(house: House):
    old, hosted = connected(house, "a")
    grid, _ = house.grid()
    node = hosted[0].node_id
    grid.push(act.push(node))
    (lease,) = old.claim([node], per_node=1, total=1, token=act.token()).leases
    new, _ = connected(house, "a")
    (taken,) = new.claim([node], per_node=1, total=1, token=act.token()).leases
    assert old.claim([node], per_node=1, total=1, token=act.token()).superseded == {node}
    renewed = old.renew([lease.key])
    assert renewed.lost == {lease.key.task_id}
    assert renewed.superseded == {node}
    assert old.submit([act.reply(lease)]) == {lease.key.task_id: Verdict.FENCED}
    assert new.submit([act.reply(taken)]) == {lease.key.task_id: Verdict.ACCEPTED}


def test_a_reply_that_names_objects_that_are_not_stored_changes_nothing(house: House):
    fleet, hosted = connected(house, "a")
    grid, _ = house.grid()
    grid.push(act.push(hosted[0].node_id))
    (lease,) = fleet.claim([hosted[0].node_id], per_node=1, total=1, token=act.token()).leases
    name = act.object_of(b"weights")
    reply = act.reply(lease, objects=frozenset([name]))
    with pytest.raises(ObjectsMissing) as caught:
        fleet.submit([reply])
    assert caught.value.hashes == {name}
    fleet.put(name, memoryview(b"weights"))
    assert fleet.submit([reply]) == {lease.key.task_id: Verdict.ACCEPTED}


def test_a_task_starts_from_the_state_that_an_accepted_reply_has_left(house: House):
    fleet, hosted = connected(house, "a")
    grid, claim = house.grid()
    node = hosted[0].node_id
    leases: list[Lease] = []
    for _ in range(3):
        grid.push(act.push(node))
        leases += fleet.claim([node], per_node=1, total=1, token=act.token()).leases
    first, second, third = leases
    assert fleet.state_bases([first.key]) == {first.key.task_id: StateBase(None)}
    fleet.submit([act.reply(first, state=True)])
    fleet.submit([act.reply(second)])
    version = StateVersion(run_id=claim.run.run_id, node_id=node, task_id=first.key.task_id)
    assert fleet.state_bases([third.key]) == {third.key.task_id: StateBase(version)}
    fleet.submit([act.reply(third, state=True)])
    assert fleet.state_bases([second.key]) == {second.key.task_id: StateBase(version, is_newest=False)}


def test_a_later_attempt_that_goes_another_way_is_told_by_the_branch(house: House):
    fleet, hosted = connected(house, "a")
    grid, claim = house.grid()
    node = hosted[0].node_id
    for sequence in range(2):
        grid.push(act.push(node, sequence=sequence))
        (lease,) = fleet.claim([node], per_node=1, total=1, token=act.token()).leases
        fleet.submit([act.reply(lease, state=True)])
        assert lease.branch == 0
    attempts.release(house.db, run_id=claim.run.run_id, token=claim.token, reason="its host went away")
    grid, _ = house.grid(claim.run.run_id)
    grid.push(act.push(node, sequence=1, group="another"))
    (anew,) = fleet.claim([node], per_node=1, total=1, token=act.token()).leases
    assert anew.branch == 1
    base = fleet.state_bases([anew.key])[anew.key.task_id]
    assert base.version is not None
    assert base.version.task_id < lease.key.task_id
    assert base.is_newest


def test_of_the_versions_of_a_run_the_newest_is_needed(house: House):
    fleet, hosted = connected(house, "a")
    grid, claim = house.grid()
    node = hosted[0].node_id
    versions = []
    for _ in range(states.KEPT_SINCE_CHECKPOINT + 2):
        grid.push(act.push(node))
        (lease,) = fleet.claim([node], per_node=1, total=1, token=act.token()).leases
        fleet.submit([act.reply(lease, state=True)])
        versions.append(StateVersion(run_id=claim.run.run_id, node_id=node, task_id=lease.key.task_id))
    assert fleet.unneeded_states(versions) == set(versions[:2])
    assert fleet.unneeded_states([]) == frozenset()


def test_the_state_of_nodes_that_it_does_not_host_is_refused(house: House):
    fleet, _ = connected(house, "a")
    other, hosted = connected(house, "b")
    grid, claim = house.grid()
    grid.push(act.push(hosted[0].node_id))
    (lease,) = other.claim([hosted[0].node_id], per_node=1, total=1, token=act.token()).leases
    with pytest.raises(NodeUnknown):
        fleet.state_bases([lease.key])
    version = StateVersion(run_id=claim.run.run_id, node_id=hosted[0].node_id, task_id=lease.key.task_id)
    with pytest.raises(NodeUnknown):
        fleet.unneeded_states([version])


def test_a_push_ends_a_wait(house: House):
    fleet, hosted = connected(house, "a")
    grid, _ = house.grid()
    woken = threading.Event()

    def wait() -> None:
        while not fleet.wait(30).tasks:
            pass
        woken.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    grid.push(act.push(hosted[0].node_id))
    assert woken.wait(10)
    waiter.join()
    assert len(fleet.claim([hosted[0].node_id], per_node=1, total=1, token=act.token()).leases) == 1


def test_the_end_of_a_run_ends_a_wait_and_is_told(house: House):
    fleet, _ = connected(house, "a")
    _, claim = house.grid()
    run_id = claim.run.run_id
    assert fleet.ended([run_id]) == frozenset()
    attempts.finish(
        house.db, run_id=run_id, token=claim.token, outcome=Outcome.COMPLETED, reason=None, exit_code=0
    )  # fmt: skip
    eventually(lambda: fleet.wait(20).runs, what="a wait that tells of runs")
    assert fleet.ended([run_id, RunId(999)]) == {run_id, RunId(999)}


def test_a_run_and_its_bundle_can_be_read(house: House):
    fleet, _ = connected(house, "a")
    _, claim = house.grid()
    info = fleet.run(claim.run.run_id)
    assert (info.name, info.seed, dict(info.config)) == (claim.run.name, 7, {"rounds": 3})
    assert fleet.bundle(info.bundle) == b"bundle"
    with pytest.raises(RunUnknown):
        fleet.run(RunId(999))
    with pytest.raises(ObjectUnknown):
        fleet.bundle(act.object_of(b"no bundle"))


def test_objects_are_stored_once_verified_and_read_again(house: House):
    fleet, _ = connected(house, "a")
    data = bytes(range(256)) * 5000  # more than one chunk
    name = act.object_of(data)
    assert fleet.missing([name]) == {name}
    with pytest.raises(ObjectCorrupt):
        fleet.put(name, memoryview(b"something else"))
    fleet.put(name, memoryview(data))
    fleet.put(name, memoryview(data))
    assert fleet.missing([name]) == frozenset()
    assert fleet.size(name) == len(data)
    into = bytearray(len(data))
    fleet.read(name, memoryview(into))
    assert into == data
    with pytest.raises(ObjectUnknown):
        fleet.read(act.object_of(b"unknown"), memoryview(bytearray(7)))


def test_output_is_appended_to_the_log_of_its_run(house: House):
    fleet, _ = connected(house, "a")
    _, claim = house.grid()
    line = LogLine(at=datetime.now(UTC), source="node a", level="info", text="hello")
    fleet.append_logs([(claim.run.run_id, line)])
    assert [found.text for found in house.control().logs(claim.run.name, FeedCursor()).lines] == ["hello"]


def test_a_process_that_says_goodbye_is_offline_at_once(house: House):
    fleet, hosted = connected(house, "a")
    grid, _ = house.grid()
    fleet.heartbeat()
    assert [node.node_id for node in grid.nodes()] == [hosted[0].node_id]
    fleet.disconnect()
    assert grid.nodes() == []
    with pytest.raises(LinkError):
        fleet.heartbeat()


def test_a_stop_is_confirmed_for_each_node_once_and_only_a_stop_is(house: House):
    fleet, hosted = connected(house, "b", "a")
    other, others = connected(house, "elsewhere")
    _, claim = house.grid()
    control = house.control()
    run_id, pairs = claim.run.run_id, [(claim.run.run_id, node.node_id) for node in hosted]

    def confirmed() -> list[str]:
        return [event.actor for event in control.events(str(run_id)) if event.event == "stopped on node"]

    fleet.confirm_ended(pairs)
    assert confirmed() == []
    control.stop(str(run_id), actor="ada")
    fleet.confirm_ended(pairs)
    fleet.confirm_ended(pairs)
    other.confirm_ended(pairs)
    assert sorted(confirmed()) == ["a", "b"]
    other.confirm_ended([(run_id, others[0].node_id)])
    assert sorted(confirmed()) == ["a", "b", "elsewhere"]
