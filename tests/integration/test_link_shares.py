"""Which of its open tasks a node gets: priority, weighted share between runs, cursors."""

from __future__ import annotations

import time
from collections import Counter
from datetime import timedelta

import pytest

from flq.link import runs, tasks
from flq.link.cursors import FULL_LOOK_SECONDS, MOST_RUNS, Cursors
from flq.link.database import Database
from flq.link.grid import DbGrid
from flq.wire.ids import NodeId, RunId, TaskId
from flq.wire.status import Verdict
from tests.integration import link_acts as act
from tests.integration.link_acts import Doors
from tests.waiting import eventually

NODE = NodeId(2)


def grid_of(doors: Doors, db: Database, **changes: float) -> tuple[DbGrid, RunId]:
    grid, claim = doors.grid(runs.submit(db, act.submission(None, **changes)))
    return grid, claim.run.run_id


def flood(grid: DbGrid, node: NodeId, tasks: int) -> None:
    for _ in range(tasks):
        grid.push(act.push(node))


def test_a_run_with_many_open_tasks_does_not_delay_the_one_of_another(doors: Doors, db: Database):
    fleet, hosted = doors.fleet("a")
    node = hosted[0].node_id
    big, _ = grid_of(doors, db)
    small, small_run = grid_of(doors, db)
    flood(big, node, 1)
    with db.connection() as connection:
        connection.execute(
            "INSERT INTO flq_state.task (node_id, run_id, batch_id)"
            " SELECT node_id, run_id, batch_id FROM flq_state.task, generate_series(1, 9999)"
        )
    first = act.claim(fleet, hosted, per_node=1)
    small.push(act.push(node))
    second = act.claim(fleet, hosted, per_node=1)
    assert len(first) == 1
    assert [lease.key.run_id for lease in second] == [small_run]


@pytest.mark.parametrize("per_node", [1, 4, 7])
def test_tasks_are_dealt_out_by_the_weights_of_their_runs(doors: Doors, db: Database, per_node: int):
    fleet, hosted = doors.fleet("a")
    light, _ = grid_of(doors, db, weight=1.0)
    heavy, heavy_run = grid_of(doors, db, weight=3.0)
    for grid in (light, heavy):
        flood(grid, hosted[0].node_id, 30)
    got: list[RunId] = []
    while len(got) < 28:
        leases = act.claim(fleet, hosted, per_node=per_node)
        got += [lease.key.run_id for lease in leases]
        assert set(fleet.submit([act.reply(lease) for lease in leases]).values()) == {Verdict.ACCEPTED}
    assert abs(got[:28].count(heavy_run) - 21) <= 1


def test_a_higher_priority_comes_first_and_within_a_run_the_oldest(doors: Doors, db: Database):
    fleet, hosted = doors.fleet("a")
    low, low_run = grid_of(doors, db)
    high, high_run = grid_of(doors, db, priority=5)
    flood(low, hosted[0].node_id, 3)
    flood(high, hosted[0].node_id, 3)
    order: list[tuple[RunId, TaskId]] = []
    for _ in range(6):
        (lease,) = act.claim(fleet, hosted, per_node=1)
        order.append((lease.key.run_id, lease.key.task_id))
    assert [run for run, _ in order] == [high_run] * 3 + [low_run] * 3
    assert [task for _, task in order[:3]] == sorted(task for _, task in order[:3])
    assert [task for _, task in order[3:]] == sorted(task for _, task in order[3:])


def test_a_full_look_at_a_known_run_takes_as_many_as_asked_for(doors: Doors, db: Database):
    fleet, hosted = doors.fleet("a")
    grid, _ = grid_of(doors, db)
    flood(grid, hosted[0].node_id, 4)
    assert len(act.claim(fleet, hosted, per_node=1)) == 1
    act.poll(fleet)
    assert len(act.claim(fleet, hosted, per_node=2)) == 2


def test_exhausted_tasks_do_not_stand_before_those_that_are_due(doors: Doors, db: Database):
    fleet, hosted = doors.fleet("a")
    grid, _ = grid_of(doors, db)
    flood(grid, hosted[0].node_id, 2)
    with db.connection() as connection:
        connection.execute("UPDATE flq_state.task SET attempt = %s WHERE task_id = 1", [tasks.MAX_ATTEMPTS])
    assert [lease.key.task_id for lease in act.claim(fleet, hosted, per_node=1)] == [2]


def test_where_the_total_cuts_a_higher_priority_on_another_node_comes_first(doors: Doors, db: Database):
    fleet, hosted = doors.fleet("a", "b")
    low, _ = grid_of(doors, db)
    high, high_run = grid_of(doors, db, priority=1)
    low.push(act.push(hosted[0].node_id))
    high.push(act.push(hosted[1].node_id))
    assert [lease.key.run_id for lease in act.claim(fleet, hosted, total=1)] == [high_run]


def test_where_the_total_cuts_the_nodes_take_turns(doors: Doors, db: Database):
    fleet, hosted = doors.fleet(*"abcdef")
    grid, _ = grid_of(doors, db)
    for _ in range(4):
        grid.push(act.push(*(node.node_id for node in hosted)))
    got: Counter[NodeId] = Counter()
    for _ in range(3):
        got.update(lease.key.node_id for lease in act.claim(fleet, hosted, per_node=2, total=4))
    assert set(got.values()) == {2}


def test_a_run_that_was_idle_has_saved_nothing_up(doors: Doors, db: Database):
    fleet, hosted = doors.fleet("a")
    busy, _ = grid_of(doors, db)
    idle, idle_run = grid_of(doors, db)
    flood(idle, hosted[0].node_id, 1)
    flood(busy, hosted[0].node_id, 20)
    for _ in range(9):
        act.claim(fleet, hosted, per_node=1)
    flood(idle, hosted[0].node_id, 9)
    later = [lease.key.run_id for _ in range(8) for lease in act.claim(fleet, hosted, per_node=1)]
    assert 3 <= later.count(idle_run) <= 5


def test_what_was_pushed_by_a_late_commit_is_found_when_told(doors: Doors, db: Database):
    from flq.link import batches

    fleet, hosted = doors.fleet("a")
    grid, claim = doors.grid()
    node = hosted[0].node_id
    with db.transaction() as slow:  # has the lower task id, and commits last
        early = batches._statement(slow, claim.run.run_id, claim.token, act.push(node))
        grid.push(act.push(node))
        assert len(act.claim(fleet, hosted)) == 1
        assert act.claim(fleet, hosted) == []

    def heard() -> bool:
        fleet.wait(0)
        return fleet._cursors._lowered.get(claim.run.run_id, 2**62) < (early.task_ids or [0])[0]

    eventually(heard, what="the notice of the late commit")
    fleet._cursors._nodes[node].full_at = time.monotonic()  # no full look is due: only the notice can bring it
    assert [lease.key.task_id for lease in act.claim(fleet, hosted)] == early.task_ids


def test_cursors_go_on_behind_what_was_taken_and_are_lowered_by_notices():
    now = [0.0]
    cursors = Cursors(clock=lambda: now[0])
    cursors.host([NODE])
    first = cursors.look([NODE], 1)
    assert (first.full, first.again, first.beyonds) == (frozenset({NODE}), True, [0])
    cursors.found([(NODE, RunId(7))])
    cursors.brought([(NODE, RunId(7), TaskId(20), 0.0, 2.0), (NODE, RunId(7), TaskId(21), 0.5, 2.0)])
    second = cursors.look([NODE], 2)
    assert (second.full, second.again, second.beyonds) == (frozenset(), False, [7])
    assert (second.known_runs, second.known_after, second.known_tags, second.clocks) == ([7], [21], [1.0], [0.5])
    cursors.hear("7 3 5")
    assert cursors.look([NODE], 3).known_after == [4]
    cursors.hear("6 3 9")  # an older run, not known here: it is looked for once
    assert [cursors.look([NODE], 4).beyonds, cursors.look([NODE], 5).beyonds] == [[5], [7]]
    cursors.hear("8 3 30")  # a newer one is found in the index
    assert cursors.look([NODE], 5).known_runs == [7]
    cursors.found([(NODE, RunId(8))])
    cursors.forget({RunId(7), RunId(9)})
    assert cursors.look([NODE], 6).known_runs == [8]


def test_a_full_look_follows_time_loss_failure_and_repetition():
    now = [0.0]
    cursors = Cursors(clock=lambda: now[0])
    cursors.host([NODE])
    look = cursors.look([NODE], 1)
    assert cursors.look([NODE], 1).again  # the same token
    assert not cursors.look([NODE], 2).full
    cursors.failed(look)
    assert cursors.look([NODE], 3).full
    cursors.hear("")
    assert cursors.look([NODE], 4).full
    now[0] += FULL_LOOK_SECONDS
    assert cursors.look([NODE], 5).full
    cursors.brought([(NODE, RunId(1), TaskId(1), None, 1.0)])  # rows of a repeated claim
    assert cursors.look([NODE], 6).full
    cursors.found((NODE, RunId(n)) for n in range(1, MOST_RUNS + 3))
    cursors.brought([(NODE, RunId(1), TaskId(1), 1.0, 1.0)])  # forgotten meanwhile
    assert min(cursors.look([NODE], 7).known_runs) == 3


def test_a_lease_that_ran_out_is_found_by_the_next_full_look(doors: Doors, db: Database):
    fleet, hosted = doors.fleet("a")
    grid, _ = doors.grid()
    grid.push(act.push(hosted[0].node_id))
    act.claim(fleet, hosted)
    with db.connection() as connection:
        connection.execute("UPDATE flq_state.task SET lease_until = lease_until - %s", [timedelta(minutes=1)])
    fleet._cursors._nodes[hosted[0].node_id].full_at = time.monotonic()
    assert act.claim(fleet, hosted) == []
    act.poll(fleet)
    assert [lease.attempt for lease in act.claim(fleet, hosted)] == [2]
