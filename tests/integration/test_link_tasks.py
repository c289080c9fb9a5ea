"""The queue: push, claim, renew, submit, release, cancel, expire, pull, on a real Postgres."""

from __future__ import annotations

import threading

import pytest

from flq.errors import AttemptFenced, NodeUnknown, ObjectsMissing
from flq.link import attempts, tasks
from flq.link.database import Database
from flq.wire.fleet import NodeSpec
from flq.wire.ids import NodeId
from flq.wire.runs import FeedCursor
from flq.wire.status import Outcome, ResultStatus, Verdict
from tests.integration import link_acts as act
from tests.integration.link_acts import Doors


def test_a_pushed_task_is_claimed_submitted_and_pulled(doors: Doors):
    fleet, hosted = doors.fleet("a", "b")
    grid, _ = doors.grid()
    pushed = grid.push(act.push(*(node.node_id for node in hosted)))

    leases = act.claim(fleet, hosted)
    assert [lease.key.task_id for lease in leases] == sorted(pushed.task_ids)
    assert {lease.manifest for lease in leases} == {b"message"}
    assert [(lease.attempt, lease.kind, lease.group) for lease in leases] == [(1, "train", "1")] * 2
    assert act.claim(fleet, hosted) == []

    verdicts = fleet.submit([act.reply(lease, b"r%d" % lease.key.node_id) for lease in leases])
    assert set(verdicts.values()) == {Verdict.ACCEPTED}
    page = grid.arrived([pushed.batch_id], FeedCursor())
    results = grid.results(page.keys)
    assert {(r.node_id, r.manifest) for r in results} == {(n.node_id, b"r%d" % n.node_id) for n in hosted}
    assert grid.arrived([pushed.batch_id], page.cursor).keys == ()


def test_each_node_can_get_a_message_of_its_own(doors: Doors):
    fleet, hosted = doors.fleet("a", "b", "c")
    grid, _ = doors.grid()
    order = [hosted[2].node_id, hosted[0].node_id, hosted[1].node_id]
    pushed = grid.push(act.push(*order, manifests=(b"for c", b"for a", b"for b")))
    got = {lease.key.task_id: (lease.key.node_id, lease.manifest) for lease in act.claim(fleet, hosted)}
    assert [got[task] for task in pushed.task_ids] == list(zip(order, (b"for c", b"for a", b"for b"), strict=True))


def test_a_push_to_an_unknown_node_makes_nothing(doors: Doors):
    fleet, hosted = doors.fleet("a")
    grid, _ = doors.grid()
    with pytest.raises(NodeUnknown, match="999"):
        grid.push(act.push(hosted[0].node_id, NodeId(999)))
    assert act.claim(fleet, hosted) == []


def test_a_push_that_names_missing_objects_says_which(doors: Doors):
    _, hosted = doors.fleet("a")
    grid, _ = doors.grid()
    name = act.object_of(b"data")
    push = act.push(hosted[0].node_id, objects=frozenset([name]))
    with pytest.raises(ObjectsMissing) as caught:
        grid.push(push)
    assert caught.value.hashes == {name}
    grid.put(name, memoryview(b"data"))
    assert len(grid.push(push).task_ids) == 1


def test_a_repeated_push_returns_the_tasks_that_exist(doors: Doors):
    fleet, hosted = doors.fleet("a", "b")
    grid, _ = doors.grid()
    push = act.push(*(node.node_id for node in hosted), sequence=0)
    first = grid.push(push)
    lease = act.claim(fleet, hosted)[0]
    fleet.submit([act.reply(lease)])
    again = grid.push(push)
    assert again.replayed
    assert (again.batch_id, again.task_ids) == (first.batch_id, first.task_ids)


def test_a_push_that_diverges_opens_a_branch_and_cancels_what_was_open(doors: Doors, db: Database):
    fleet, hosted = doors.fleet("a")
    grid, claim = doors.grid()
    old = grid.push(act.push(hosted[0].node_id, sequence=0))
    new = grid.push(act.push(hosted[0].node_id, sequence=0, kind="evaluate"))
    assert new.batch_id != old.batch_id
    assert not new.replayed
    assert [lease.kind for lease in act.claim(fleet, hosted)] == ["evaluate"]
    (ended,) = grid.arrived([old.batch_id], FeedCursor()).keys
    assert ended.status == ResultStatus.CANCELLED
    with db.connection() as connection:
        row = connection.execute(
            "SELECT details FROM flq_state.run_event WHERE event = 'diverged' AND run_id = %s", [claim.run.run_id]
        ).fetchone()
    assert row is not None
    assert {"sequence", "now", "before"} == set(row[0])


def test_a_fenced_attempt_can_push_nothing(doors: Doors, db: Database):
    fleet, hosted = doors.fleet("a")
    grid, claim = doors.grid()
    attempts.release(db, run_id=claim.run.run_id, token=claim.token, reason="its process was killed")
    with pytest.raises(AttemptFenced):
        grid.push(act.push(hosted[0].node_id))
    assert act.claim(fleet, hosted) == []


def test_a_retried_claim_gets_the_same_tasks_at_the_same_attempt(doors: Doors):
    fleet, hosted = doors.fleet("a")
    grid, _ = doors.grid()
    grid.push(act.push(hosted[0].node_id))
    token = act.token()
    first = fleet.claim([hosted[0].node_id], per_node=5, total=5, token=token)
    again = fleet.claim([hosted[0].node_id], per_node=5, total=5, token=token)
    assert first == again
    assert [lease.attempt for lease in first.leases] == [1]


def test_limits_per_node_and_in_total_hold(doors: Doors):
    fleet, hosted = doors.fleet("a", "b", "c")
    grid, _ = doors.grid()
    for _ in range(3):
        grid.push(act.push(*(node.node_id for node in hosted)))
    assert len(act.claim(fleet, hosted, per_node=2, total=5)) == 5
    assert len(act.claim(fleet, hosted, per_node=10)) == 4


def test_two_processes_never_claim_one_task(doors: Doors):
    fleet, hosted = doors.fleet(*(f"n{i}" for i in range(20)))
    grid, _ = doors.grid()
    grid.push(act.push(*(node.node_id for node in hosted)))
    got: list[int] = []

    def work() -> None:
        while leases := act.claim(fleet, hosted, per_node=1, total=3):
            got.extend(lease.key.task_id for lease in leases)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(set(got))
    assert len(got) == 20


def test_a_restarted_process_takes_its_tasks_over_at_once_and_the_old_one_is_fenced(doors: Doors, db: Database):
    old, hosted = doors.fleet("a")
    grid, _ = doors.grid()
    pushed = grid.push(act.push(hosted[0].node_id))
    (lease,) = act.claim(old, hosted)

    new, hosted_again = doors.fleet("a")
    assert hosted_again[0].node_id == hosted[0].node_id
    assert hosted_again[0].epoch == hosted[0].epoch + 1
    # not yet claimed again, but the old process may no longer finish it
    assert old.submit([act.reply(lease)]) == {lease.key.task_id: Verdict.FENCED}
    (taken,) = act.claim(new, hosted_again)
    assert taken.attempt == 2
    assert old.renew([lease.key]).lost == {lease.key.task_id}
    assert old.renew([lease.key]).superseded == {hosted[0].node_id}
    assert old.claim([hosted[0].node_id], per_node=1, total=1, token=act.token()).superseded == {hosted[0].node_id}
    assert new.submit([act.reply(taken)]) == {taken.key.task_id: Verdict.ACCEPTED}
    with db.connection() as connection:
        rows = connection.execute(
            "SELECT attempt, reason FROM flq_state.task_attempt WHERE task_id = %s ORDER BY attempt", pushed.task_ids
        ).fetchall()
    assert rows == [(1, "displaced"), (2, "ok")]


def test_connecting_again_as_the_same_process_changes_nothing(doors: Doors):
    fleet, hosted = doors.fleet("a")
    spec = act.process()
    first = fleet.connect(spec, [NodeSpec(name="a")])
    assert fleet.connect(spec, [NodeSpec(name="a")]) == first
    assert first[0].epoch == hosted[0].epoch + 1


def test_a_lease_that_ran_out_is_claimed_by_another_attempt_and_a_renewed_one_is_not(doors: Doors, db: Database):
    fleet, hosted = doors.fleet("a", "b")
    grid, _ = doors.grid()
    grid.push(act.push(*(node.node_id for node in hosted)))
    kept, left = act.claim(fleet, hosted)
    with db.connection() as connection:
        connection.execute("UPDATE flq_state.task SET lease_until = clock_timestamp() - interval '1 s'")
    assert fleet.renew([kept.key]).lost == frozenset()
    act.poll(fleet)
    (again,) = act.claim(fleet, hosted)
    assert (again.key.task_id, again.attempt) == (left.key.task_id, 2)
    assert fleet.submit([act.reply(left)]) == {left.key.task_id: Verdict.FENCED}


def test_a_repeated_submit_is_a_duplicate_and_changes_nothing(doors: Doors):
    fleet, hosted = doors.fleet("a")
    grid, _ = doors.grid()
    pushed = grid.push(act.push(hosted[0].node_id))
    (lease,) = act.claim(fleet, hosted)
    assert fleet.submit([act.reply(lease, b"first")]) == {lease.key.task_id: Verdict.ACCEPTED}
    assert fleet.submit([act.reply(lease, b"second")]) == {lease.key.task_id: Verdict.DUPLICATE}
    (result,) = grid.results(grid.arrived([pushed.batch_id], FeedCursor()).keys)
    assert result.manifest == b"first"


def test_a_bad_reply_does_not_take_its_flush_with_it(doors: Doors, db: Database):
    fleet, hosted = doors.fleet("a", "b", "c")
    grid, _ = doors.grid()
    grid.push(act.push(*(node.node_id for node in hosted)))
    good, bad, fine = act.claim(fleet, hosted)
    replies = [
        act.reply(good),
        act.reply(bad, status=ResultStatus.ERROR, error_code=2, error_text="a \0 in it", metrics={"x": float("nan")}),
        act.reply(fine, metrics={"loss": 0.5, "per-class": [1.0, float("inf")]}),
    ]
    assert set(fleet.submit(replies).values()) == {Verdict.ACCEPTED}
    with db.connection() as connection:
        rows = connection.execute("SELECT status, error_text, metrics FROM flq.tasks ORDER BY task_id").fetchall()
    assert rows == [
        ("ok", None, {}),
        ("error", "a \N{SYMBOL FOR NULL} in it", {"x": "nan"}),
        ("ok", None, {"loss": 0.5, "per-class": [1.0, "inf"]}),
    ]


def test_a_released_task_can_be_claimed_at_once(doors: Doors):
    fleet, hosted = doors.fleet("a")
    grid, _ = doors.grid()
    grid.push(act.push(hosted[0].node_id))
    (lease,) = act.claim(fleet, hosted)
    fleet.release([lease.key])
    (again,) = act.claim(fleet, hosted)
    assert again.attempt == 2


def test_cancelled_tasks_become_results_and_late_replies_are_fenced(doors: Doors):
    fleet, hosted = doors.fleet("a", "b")
    grid, _ = doors.grid()
    pushed = grid.push(act.push(*(node.node_id for node in hosted)))
    lease = act.claim(fleet, hosted)[0]
    assert grid.cancel([pushed.batch_id]) == 2
    assert grid.cancel([pushed.batch_id]) == 0
    assert fleet.submit([act.reply(lease)]) == {lease.key.task_id: Verdict.FENCED}
    keys = grid.arrived([pushed.batch_id], FeedCursor()).keys
    assert {key.status for key in keys} == {ResultStatus.CANCELLED}
    assert len(keys) == 2


def test_overdue_and_exhausted_tasks_are_ended(doors: Doors, db: Database):
    fleet, hosted = doors.fleet("a", "b")
    grid, _ = doors.grid()
    late = grid.push(act.push(hosted[0].node_id))
    tried = grid.push(act.push(hosted[1].node_id))
    with db.transaction() as tx:
        tx.execute("UPDATE flq_state.batch SET deadline = clock_timestamp() WHERE batch_id = %s", [late.batch_id])
        tx.execute("UPDATE flq_state.task SET attempt = %s WHERE batch_id = %s", [tasks.MAX_ATTEMPTS, tried.batch_id])
    assert act.claim(fleet, hosted) == []
    with db.transaction() as tx:
        assert (tasks.expire_overdue(tx), tasks.ExhaustedSweep()(tx)) == (1, 1)
    page = grid.arrived([late.batch_id, tried.batch_id], FeedCursor())
    assert {(r.batch_id, r.status) for r in grid.results(page.keys)} == {
        (late.batch_id, ResultStatus.EXPIRED),
        (tried.batch_id, ResultStatus.ERROR),
    }


def test_a_repeated_claim_says_which_nodes_another_process_hosts_now(doors: Doors):
    fleet, hosted = doors.fleet("a", "b")
    grid, _ = doors.grid()
    grid.push(act.push(hosted[1].node_id))
    asked, token = [node.node_id for node in hosted], act.token()
    first = fleet.claim(asked, per_node=1, total=2, token=token)
    doors.fleet("a")
    again = fleet.claim(asked, per_node=1, total=2, token=token)
    assert [lease.key for lease in again.leases] == [lease.key for lease in first.leases]
    assert again.superseded == {hosted[0].node_id}


def test_exhausted_tasks_are_found_part_by_part(doors: Doors, db: Database):
    _, hosted = doors.fleet("a", "b")
    grid, _ = doors.grid()
    pushed = grid.push(act.push(*[node.node_id for node in hosted for _ in range(4)]))
    tried = [pushed.task_ids[3], pushed.task_ids[6]]
    with db.transaction() as tx:
        exhaust = "UPDATE flq_state.task SET attempt = %s WHERE task_id = ANY (%s)"
        tx.execute(exhaust, [tasks.MAX_ATTEMPTS, tried])
        sweep = tasks.ExhaustedSweep(look=3)
        assert [sweep(tx) for _ in range(3)] == [0, 1, 1]
        tx.execute(exhaust, [tasks.MAX_ATTEMPTS, [pushed.task_ids[0]]])
        assert sweep(tx) == 1, "it begins anew"


def test_exhausted_tasks_are_found_in_every_node_whichever_has_the_older_ones(doors: Doors, db: Database):
    low, high = (node.node_id for node in doors.fleet("a", "b")[1])
    grid, _ = doors.grid()
    pushed = grid.push(act.push(high, high, low, low))
    with db.transaction() as tx:
        tx.execute(
            "UPDATE flq_state.task SET attempt = %s WHERE task_id = %s", [tasks.MAX_ATTEMPTS, pushed.task_ids[2]]
        )
        sweep = tasks.ExhaustedSweep(look=1)
        assert sum(sweep(tx) for _ in range(4)) == 1


def test_a_feed_has_no_gap_behind_a_late_commit_and_no_row_twice(doors: Doors, db: Database):
    fleet, hosted = doors.fleet("a", "b", "c")
    grid, _ = doors.grid()
    pushed = grid.push(act.push(*(node.node_id for node in hosted)))
    first, second, third = act.claim(fleet, hosted)
    seen: list[int] = []
    cursor = FeedCursor()

    def look() -> None:
        nonlocal cursor
        page = grid.arrived([pushed.batch_id], cursor)
        cursor = page.cursor
        seen.extend(key.task_id for key in page.keys)

    from flq.link import results

    with db.connection() as slow:  # holds a lower transaction id, and commits last
        with slow.transaction():
            results._statement(slow, [act.reply(first)])
            fleet.submit([act.reply(second)])
            look()
            fleet.submit([act.reply(third)])
            look()
        look()
    look()
    assert seen == [second.key.task_id, third.key.task_id, first.key.task_id]


def test_finishing_a_run_cancels_its_tasks_and_fences_its_serverapp(doors: Doors, db: Database):
    fleet, hosted = doors.fleet("a")
    grid, claim = doors.grid()
    grid.push(act.push(hosted[0].node_id))
    (lease,) = act.claim(fleet, hosted)
    run_id = claim.run.run_id
    assert attempts.finish(db, run_id=run_id, token=claim.token, outcome=Outcome.COMPLETED, reason=None, exit_code=0)
    assert fleet.ended([run_id]) == {run_id}
    assert fleet.renew([lease.key]).lost == {lease.key.task_id}
    with pytest.raises(AttemptFenced):
        grid.push(act.push(hosted[0].node_id))


def test_a_push_wakes_the_fleet_and_a_result_wakes_the_grid(doors: Doors):
    fleet, hosted = doors.fleet("a")
    grid, _ = doors.grid()
    while fleet.wait(0) != fleet.wait(0):
        pass
    woken = threading.Event()

    def wait() -> None:
        while not fleet.wait(20).tasks:
            pass
        woken.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    grid.push(act.push(hosted[0].node_id))
    assert woken.wait(10)
    waiter.join()
    (lease,) = act.claim(fleet, hosted)
    waiter = threading.Thread(target=grid.wait, args=(60,))
    waiter.start()
    fleet.submit([act.reply(lease)])
    waiter.join(20)
    assert not waiter.is_alive()
