"""Results and the ends of tasks: as they were sent, each once, late ones counted; and pushes that are repeated."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime

import pytest

from flq.errors import AttemptFenced, LinkError, ObjectsMissing
from flq.link import batches, results, runs, tasks
from flq.link.database import Database
from flq.wire.fleet import Lease, TaskKey
from flq.wire.grid import Checkpoint, ResultKey
from flq.wire.ids import TaskId
from flq.wire.runs import FeedCursor
from flq.wire.status import ResultStatus, Verdict
from tests.integration import link_acts as act
from tests.integration.queue_scene import Scene, one_of_each

# ---------------------------------------------------------------------- results


def test_a_reply_is_stored_as_it_was_sent(scene: Scene):
    pushed = scene.push(0)
    leases = scene.claim()
    ok, failed = (leases[task] for task in pushed.task_ids)
    began, ended = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), datetime(2026, 1, 2, 3, 4, 6, 500_000, tzinfo=UTC)
    times = {"started_at": began, "ended_at": ended}
    scene.fleet.submit([
        act.reply(ok, b"weights", metrics={"loss": 0.5}, payload_bytes=7, **times),
        act.reply(failed, b"ignored", status=ResultStatus.ERROR, error_code=8, error_text="it fell", **times),
    ])  # fmt: skip
    found = scene.grids[0].results(scene.grids[0].arrived([pushed.batch_id], FeedCursor()).keys)
    by_task = {result.task_id: result for result in found}
    first, second = (by_task[task] for task in pushed.task_ids)
    assert (first.status, first.manifest, first.error_code, first.error_text) == (
        ResultStatus.OK,
        b"weights",
        None,
        None,
    )
    assert (first.node_id, first.batch_id, first.created_at) == (scene.nodes[0], pushed.batch_id, ended.timestamp())
    assert (second.status, second.manifest, second.error_code, second.error_text) == (
        ResultStatus.ERROR, b"", 8, "it fell",
    )  # fmt: skip
    with scene.db.connection() as connection:
        row = connection.execute(
            "SELECT run_id, attempt, token, process_id::text, metrics, payload_bytes, started_at, ended_at"
            " FROM flq_state.result WHERE task_id = %s",
            [ok.key.task_id],
        ).fetchone()
    process_id = scene.fleet._connected().process_id
    assert row == (scene.runs[0], 1, ok.key.token, process_id, {"loss": 0.5}, 7, began, ended)


def test_results_are_read_in_the_order_they_are_asked_for_and_the_unknown_left_out(scene: Scene):
    pushed = scene.push(0)
    scene.fleet.submit([act.reply(lease, b"%d" % task) for task, lease in scene.claim().items()])
    keys = sorted(scene.grids[0].arrived([pushed.batch_id], FeedCursor()).keys, key=lambda key: -key.task_id)
    unknown = ResultKey(pushed.batch_id, TaskId(10**6), scene.nodes[0], ResultStatus.OK)
    found = scene.grids[0].results([keys[0], unknown, keys[1]])
    assert [(result.task_id, result.manifest) for result in found] == [(k.task_id, b"%d" % k.task_id) for k in keys]


def test_a_feed_brings_the_results_of_its_batches_only(scene: Scene):
    mine, other = scene.push(0), scene.push(0)
    scene.fleet.submit([act.reply(lease) for lease in scene.claim().values()])
    page = scene.grids[0].arrived([mine.batch_id], FeedCursor())
    assert {key.task_id for key in page.keys} == set(mine.task_ids)
    assert {key.node_id for key in page.keys} == set(scene.nodes)
    later = scene.grids[0].arrived([mine.batch_id, other.batch_id], page.cursor)
    assert {key.task_id for key in later.keys} <= set(other.task_ids)


def test_a_feed_remembers_no_more_than_it_has_to(scene: Scene):
    """What is older than every open transaction cannot come again."""
    pushed = scene.push(0)
    scene.fleet.submit([act.reply(lease) for lease in scene.claim().values()])
    page = scene.grids[0].arrived([pushed.batch_id], FeedCursor())
    assert len(page.keys) == 2
    again = scene.grids[0].arrived([pushed.batch_id], page.cursor)
    assert (again.keys, again.cursor.seen) == ((), frozenset())
    assert again.cursor.xmin >= page.cursor.xmin > 0


def test_a_flush_is_split_around_the_reply_that_cannot_be_stored(scene: Scene):
    pushed = [scene.push(0) for _ in range(3)]
    leases = list(scene.claim().values())
    replies = [act.reply(lease) for lease in leases]
    bad = replies[3] = act.reply(leases[3], status=ResultStatus.ERROR)  # an error without a code
    with pytest.raises(LinkError, match=f"reply of task {bad.key.task_id} cannot be stored: new row .*") as caught:
        scene.fleet.submit(replies)
    assert "DETAIL" not in str(caught.value), "it would quote the whole row"
    stored = scene.ended(*pushed)
    assert bad.key.task_id not in stored
    assert set(stored) >= {reply.key.task_id for reply in replies[:3]}


def test_an_answer_to_many_replies_says_what_became_of_each(scene: Scene):
    scene.push(0)
    scene.push(1)
    leases = list(scene.claim().values())
    _, duplicate, fenced, cancelled = leases
    scene.fleet.submit([act.reply(duplicate)])
    scene.fleet.release([fenced.key])
    with scene.db.transaction() as tx:
        tasks.cancel_batches(tx, cancelled.key.run_id, [cancelled.key.batch_id], reason="a test")
    verdicts = scene.fleet.submit([act.reply(lease) for lease in leases])
    assert verdicts[duplicate.key.task_id] == Verdict.DUPLICATE
    assert verdicts[fenced.key.task_id] == verdicts[cancelled.key.task_id] == Verdict.FENCED
    assert len(verdicts) == 4


def test_a_reply_of_an_attempt_that_lost_its_task_is_no_duplicate_of_the_one_that_was_stored(scene: Scene):
    scene.push(0, scene.nodes[0])
    (lost,) = scene.claim().values()
    scene.leases_run_out(lost.key.task_id)
    (won,) = scene.claim().values()
    assert scene.fleet.submit([act.reply(won)]) == {won.key.task_id: Verdict.ACCEPTED}
    assert scene.fleet.submit([act.reply(lost)]) == {lost.key.task_id: Verdict.FENCED}


def test_of_a_task_twice_in_a_flush_the_first_reply_is_applied(scene: Scene):
    pushed = scene.push(0, scene.nodes[0])
    (lease,) = scene.claim().values()
    verdicts = scene.fleet.submit([act.reply(lease, b"first"), act.reply(lease, b"second")])
    assert verdicts == {lease.key.task_id: Verdict.DUPLICATE}
    (found,) = scene.grids[0].results(scene.grids[0].arrived([pushed.batch_id], FeedCursor()).keys)
    assert found.manifest == b"first"


def test_a_task_twice_in_a_flush_is_late_once_when_it_is_late(scene: Scene):
    scene.push(0, scene.nodes[0])
    (lease,) = scene.claim().values()
    scene.leases_run_out(lease.key.task_id)
    scene.claim()
    scene.fleet.submit([act.reply(lease), act.reply(lease)])
    assert [claims for *_, claims in late_results(scene)] == [claims_of(lease)]


def late_results(scene: Scene) -> list[tuple[object, ...]]:
    with scene.db.connection() as connection:
        return connection.execute(
            "SELECT run_id, details -> 'tasks', details -> 'nodes', details -> 'claims' FROM flq_state.run_event"
            " WHERE event = 'late results' ORDER BY run_id, event_id"
        ).fetchall()


def claims_of(*leases: Lease) -> list[str]:
    return sorted(f"{lease.key.task_id}:{lease.key.token}" for lease in leases)


def test_late_results_are_counted_for_each_run_and_each_claim_once(scene: Scene):
    scene.push(0)
    scene.push(1)
    leases = scene.claim()
    firsts = [one_of_each(leases, node=node, run=run) for run in scene.runs for node in scene.nodes]
    scene.leases_run_out(*leases)
    again = scene.claim()
    assert len(again) == 4
    for _ in range(2):
        verdicts = scene.fleet.submit([act.reply(lease) for lease in reversed(firsts)])
        assert set(verdicts.values()) == {Verdict.FENCED}
    assert late_results(scene) == [
        (run, sorted(lease.key.task_id for lease in two), sorted(scene.nodes), claims_of(*two))
        for run, two in zip(scene.runs, (firsts[:2], firsts[2:]), strict=True)
    ]
    scene.fleet.submit([act.reply(lease) for lease in again.values()])
    assert len(late_results(scene)) == 2


def test_a_node_with_two_late_results_is_named_once(scene: Scene):
    scene.push(0, scene.nodes[0])
    scene.push(0, scene.nodes[0])
    leases = scene.claim()
    scene.leases_run_out(*leases)
    scene.claim()
    scene.fleet.submit([act.reply(lease) for lease in leases.values()])
    assert late_results(scene) == [(scene.runs[0], sorted(leases), [scene.nodes[0]], claims_of(*leases.values()))]


@pytest.mark.parametrize("part", ["node_id", "run_id", "task_id", "batch_id"])
@pytest.mark.parametrize("over", [False, True], ids=["open", "over"])
def test_a_reply_to_a_task_that_never_was_is_not_counted(scene: Scene, part: str, *, over: bool):
    scene.push(1)
    scene.push(0, scene.nodes[0])
    lease = one_of_each(scene.claim(), node=scene.nodes[0], run=scene.runs[0])
    if over:
        with scene.db.transaction() as tx:
            tasks.cancel_run(tx, scene.runs[0], reason="a test")
    wrong = {"node_id": scene.nodes[1], "run_id": scene.runs[1], "task_id": 10**6, "batch_id": 10**6}[part]
    parts = {field: getattr(lease.key, field) for field in ("node_id", "run_id", "task_id", "batch_id", "token")}
    key = TaskKey(**{**parts, "token": 1, part: wrong})
    assert scene.fleet.submit([act.reply(lease, key=key)]) == {key.task_id: Verdict.FENCED}
    assert late_results(scene) == []


def test_a_reply_that_names_another_batch_of_its_run_is_not_counted(scene: Scene):
    other = scene.push(0, scene.nodes[1])
    pushed = scene.push(0, scene.nodes[0])
    lease = scene.claim()[pushed.task_ids[0]]
    scene.grids[0].cancel([pushed.batch_id])
    key = TaskKey(
        node_id=lease.key.node_id, run_id=lease.key.run_id, task_id=lease.key.task_id, batch_id=other.batch_id, token=1
    )
    assert scene.fleet.submit([act.reply(lease, key=key)]) == {key.task_id: Verdict.FENCED}
    assert late_results(scene) == []


# ---------------------------------------------------------------------- sweeps


def test_a_sweep_ends_what_is_overdue_and_so_many_at_once(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tasks, "SWEEP_ROWS", 3)
    kept = scene.push(1)
    late = [scene.push(0), scene.push(0)]
    finished = scene.push(0)
    scene.fleet.submit([act.reply(lease) for task, lease in scene.claim().items() if task in finished.task_ids])
    scene.deadlines_pass(*late, finished)
    counts = []
    for _ in range(3):
        with scene.db.transaction() as tx:
            counts.append(tasks.expire_overdue(tx))
    assert counts == [3, 1, 0]
    assert scene.ended(kept, *late) == dict.fromkeys([*late[0].task_ids, *late[1].task_ids], ResultStatus.EXPIRED)
    assert {row[0] for row in scene.rows("task_id")} == set(kept.task_ids)
    (result, *_) = scene.grids[0].results(scene.grids[0].arrived([late[0].batch_id], FeedCursor()).keys)
    assert (result.error_code, result.error_text) == (tasks.MESSAGE_UNAVAILABLE, "its deadline passed")


def test_a_task_is_exhausted_when_nobody_works_on_its_last_attempt_any_more(scene: Scene):
    pushed = scene.push(0)
    leases = scene.claim()
    with scene.db.connection() as connection:
        connection.execute("UPDATE flq_state.task SET attempt = %s", [tasks.MAX_ATTEMPTS])

    def sweep() -> int:
        with scene.db.transaction() as tx:
            return tasks.ExhaustedSweep()(tx)

    assert sweep() == 0
    left, at_work = pushed.task_ids
    scene.leases_run_out(left)
    assert sweep() == 1
    assert scene.ended(pushed) == {left: ResultStatus.ERROR}
    (result,) = scene.grids[0].results(scene.grids[0].arrived([pushed.batch_id], FeedCursor()).keys)
    assert result.error_code == tasks.CLIENT_APP_CRASHED
    assert f"{tasks.MAX_ATTEMPTS} attempts" in str(result.error_text)
    assert scene.fleet.submit([act.reply(leases[at_work])]) == {at_work: Verdict.ACCEPTED}


def test_a_sweep_ends_so_many_exhausted_tasks_at_once_and_goes_on_where_it_was(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tasks, "SWEEP_ROWS", 2)
    for _ in range(3):
        scene.push(0)
    kept = scene.push(1, scene.nodes[0])
    with scene.db.connection() as connection:
        connection.execute("UPDATE flq_state.task SET attempt = %s WHERE run_id = %s", [99, scene.runs[0]])
    sweep = tasks.ExhaustedSweep()
    counts = []
    for _ in range(4):
        with scene.db.transaction() as tx:
            counts.append(sweep(tx))
    assert counts == [2, 2, 2, 0]
    assert scene.rows("task_id") == [(kept.task_ids[0],)]


def test_a_task_below_its_last_attempt_is_not_exhausted(scene: Scene):
    scene.push(0)
    with scene.db.transaction() as tx:
        tx.execute("UPDATE flq_state.task SET attempt = %s", [tasks.MAX_ATTEMPTS - 1])
        assert tasks.ExhaustedSweep()(tx) == 0


# ---------------------------------------------------------------------- pushes


def test_a_push_of_a_run_that_is_asked_to_stop_makes_nothing(scene: Scene):
    with scene.db.transaction() as tx:
        runs.request_stop(tx, scene.runs[0], actor="ada", reason=None)
    with pytest.raises(AttemptFenced):
        scene.push(0)
    assert scene.rows("task_id") == []
    scene.push(1)
    assert len(scene.rows("task_id")) == 2


def test_a_token_opens_its_own_run_only(scene: Scene):
    push = act.push(*scene.nodes, sequence=0)
    made = scene.grids[0].push(push)
    mine, other = scene.runs
    token = scene.grids[0]._token
    for repeated in (push, act.push(*scene.nodes, sequence=1)):
        with pytest.raises(AttemptFenced):
            batches.push(scene.db, run_id=other, token=token, push=repeated)
    with pytest.raises(AttemptFenced):
        batches._repeat(scene.db, other, token, push)
    assert {row[0] for row in scene.rows("task_id")} == set(made.task_ids)
    assert batches._repeat(scene.db, mine, token, push) is not None


def test_a_push_before_its_attempt_has_begun_makes_nothing(scene: Scene, db: Database):
    claim = act.start_attempt(db)
    with pytest.raises(AttemptFenced):
        batches.push(db, run_id=claim.run.run_id, token=claim.token, push=act.push(*scene.nodes))
    assert scene.rows("task_id") == []


def test_sequences_of_two_runs_have_nothing_to_do_with_each_other(scene: Scene):
    push = act.push(*scene.nodes, sequence=5)
    first, other = scene.grids[0].push(push), scene.grids[1].push(push)
    assert not other.replayed
    assert not set(first.task_ids) & set(other.task_ids)
    next_one = scene.grids[0].push(act.push(*scene.nodes, sequence=6))
    for grid, before in ((scene.grids[0], first), (scene.grids[1], other)):
        again = grid.push(push)
        assert (again.batch_id, again.task_ids, again.replayed) == (before.batch_id, before.task_ids, True)
    assert next_one.batch_id not in {first.batch_id, other.batch_id}


def test_a_push_found_again_names_its_tasks_in_order_open_and_over(scene: Scene):
    other = scene.push(0)
    push = act.push(*itertools.chain(scene.nodes, reversed(scene.nodes)), sequence=10**6)
    pushed = scene.grids[0].push(push)
    assert list(pushed.task_ids) == sorted(pushed.task_ids)
    leases = scene.claim()
    over = (pushed.task_ids[0], pushed.task_ids[2], other.task_ids[0])
    scene.fleet.submit([act.reply(leases[task_id]) for task_id in over])
    assert scene.grids[0].push(push).task_ids == pushed.task_ids


def test_a_sequence_of_an_older_branch_is_not_found_again(scene: Scene):
    grid = scene.grids[0]
    grid.push(act.push(*scene.nodes, sequence=0))
    old = grid.push(act.push(*scene.nodes, sequence=1))
    grid.push(act.push(*scene.nodes, sequence=0, kind="evaluate"))  # goes another way
    new = grid.push(act.push(*scene.nodes, sequence=1))
    assert not new.replayed
    assert new.batch_id != old.batch_id
    assert grid.push(act.push(*scene.nodes, sequence=1)).batch_id == new.batch_id


def test_a_push_with_the_number_of_a_checkpoint_goes_another_way(scene: Scene):
    grid = scene.grids[0]
    grid.commit_round(Checkpoint(round=1, state=b"", objects=frozenset(), metrics={}, next_sequence=1))
    pushed = grid.push(act.push(*scene.nodes, sequence=0))
    assert not pushed.replayed
    assert scene.rows("batch_id") == [(pushed.batch_id,)] * 2


def test_results_of_a_flush_refer_to_their_objects(scene: Scene):
    pushed = scene.push(0)
    leases = scene.claim()
    names = [act.object_of(data) for data in (b"one", b"two")]
    for name, data in zip(names, (b"one", b"two"), strict=True):
        scene.fleet.put(name, memoryview(data))
    first, second = (leases[task] for task in pushed.task_ids)
    scene.fleet.submit([act.reply(first, objects=frozenset(names)), act.reply(second, objects=frozenset(names[:1]))])
    with scene.db.connection() as connection:
        rows = connection.execute(
            "SELECT holder_id, object_hash FROM flq_state.object_ref WHERE holder = 'result' AND run_id = %s",
            [scene.runs[0]],
        ).fetchall()
    assert {(task, bytes(name)) for task, name in rows} == {
        (first.key.task_id, names[0]), (first.key.task_id, names[1]), (second.key.task_id, names[0]),
    }  # fmt: skip


def test_a_reply_whose_objects_are_missing_changes_nothing(scene: Scene):
    scene.push(0, scene.nodes[0])
    (lease,) = scene.claim().values()
    missing = act.object_of(b"never stored")
    with pytest.raises(ObjectsMissing) as caught:
        scene.fleet.submit([act.reply(lease, objects=frozenset([missing]))])
    assert caught.value.hashes == {missing}
    assert scene.fleet.submit([act.reply(lease)]) == {lease.key.task_id: Verdict.ACCEPTED}


def test_nothing_to_submit_is_no_verdict(scene: Scene):
    assert results.submit(scene.db, []) == {}
