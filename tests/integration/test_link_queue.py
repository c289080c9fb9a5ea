"""What calls on the queue leave untouched, what they write down, whom they tell, and how much they do at once."""

from __future__ import annotations

import uuid

import pytest

from flq.errors import DatabaseUnreachable
from flq.link import notify, tasks
from flq.link.cursors import Cursors
from flq.link.notify import Notice
from flq.wire.fleet import TaskKey
from flq.wire.ids import BatchId, NodeId, TaskId
from flq.wire.runs import FeedCursor
from flq.wire.status import ResultStatus, Verdict
from tests.integration import link_acts as act
from tests.integration.queue_scene import Ear, Scene, one_of_each

# ---------------------------------------------------------------------- one task, and no other


def test_a_call_for_one_task_leaves_the_other_ones_alone(scene: Scene):
    """Of the same node, of the same run, of the same claim."""
    first, second = scene.push(0), scene.push(1)
    leases = scene.claim()
    assert len(leases) == 4
    chosen = one_of_each(leases, node=scene.nodes[0], run=scene.runs[0])
    others = sorted(leases.keys() - {chosen.key.task_id})
    before = scene.rows("task_id, token, attempt, process_id, claimed_at", f"task_id <> {chosen.key.task_id}")

    scene.fleet.release([chosen.key])
    assert scene.rows("task_id", "token = 0") == [(chosen.key.task_id,)]
    again = scene.claim()
    assert list(again) == [chosen.key.task_id]
    assert scene.fleet.submit([act.reply(again[chosen.key.task_id])]) == {chosen.key.task_id: Verdict.ACCEPTED}
    assert scene.rows("task_id, token, attempt, process_id, claimed_at") == before
    assert [row[0] for row in scene.rows("task_id")] == others
    assert scene.ended(first, second) == {chosen.key.task_id: ResultStatus.OK}


def test_a_renewal_prolongs_what_it_names_and_nothing_else(scene: Scene):
    scene.push(0)
    scene.push(1)
    leases = scene.claim()
    scene.leases_run_out(*leases)
    kept = one_of_each(leases, node=scene.nodes[0], run=scene.runs[0])
    assert scene.fleet.renew([kept.key]).lost == frozenset()
    assert scene.rows("task_id", "lease_until > clock_timestamp()") == [(kept.key.task_id,)]


@pytest.mark.parametrize("name", ["renew", "release", "submit"])
@pytest.mark.parametrize("part", ["node_id", "run_id", "task_id", "token"])
def test_a_key_that_is_wrong_in_one_part_holds_nothing(scene: Scene, part: str, name: str):
    """The other node, the other run, the other task of the node and the run, or the other claim."""
    scene.push(0)
    scene.push(1)
    scene.push(0)
    leases = scene.claim()
    chosen, sibling = sorted(
        (
            lease.key
            for lease in leases.values()
            if (lease.key.node_id, lease.key.run_id) == (scene.nodes[0], scene.runs[0])
        ),
        key=lambda key: key.task_id,
    )
    wrong = {
        "node_id": scene.nodes[1], "run_id": scene.runs[1], "task_id": 10**6, "token": chosen.token ^ 1,
    }[part]  # fmt: skip
    parts = {field: getattr(chosen, field) for field in ("node_id", "run_id", "task_id", "batch_id", "token")}
    key = TaskKey(**{**parts, part: wrong})
    before = scene.rows("*")
    if name == "renew":
        assert scene.fleet.renew([key, sibling]).lost == {key.task_id}
    elif name == "release":
        scene.fleet.release([key])
        assert scene.rows("*") == before
    else:
        assert scene.fleet.submit([act.reply(leases[chosen.task_id], key=key)]) == {key.task_id: Verdict.FENCED}
        assert scene.rows("*") == before


def test_a_cancellation_ends_the_open_tasks_of_its_batches_only(scene: Scene):
    kept, ended, other = scene.push(0), scene.push(0), scene.push(1)
    with scene.db.transaction() as tx:
        # a batch of another run is none of ours
        count = tasks.cancel_batches(tx, scene.runs[0], [ended.batch_id, other.batch_id], reason="a test")
    assert count == 2
    assert set(scene.ended(kept, ended, other)) == set(ended.task_ids)
    assert {row[0] for row in scene.rows("task_id")} == {*kept.task_ids, *other.task_ids}


def test_the_end_of_a_run_ends_its_tasks_and_no_others(scene: Scene):
    mine, other = scene.push(0), scene.push(1)
    with scene.db.transaction() as tx:
        assert tasks.cancel_run(tx, scene.runs[0], reason="a test") == 2
        assert tasks.cancel_run(tx, scene.runs[0], reason="a test") == 0
    assert set(scene.ended(mine, other)) == set(mine.task_ids)
    found = scene.grids[0].results(scene.grids[0].arrived([mine.batch_id], FeedCursor()).keys)
    assert {(r.status, r.error_code, r.error_text, r.manifest) for r in found} == {
        (ResultStatus.CANCELLED, tasks.MESSAGE_UNAVAILABLE, "a test", b"")
    }


# ---------------------------------------------------------------------- claims


def test_a_claim_brings_what_was_pushed_as_it_was_pushed(scene: Scene):
    pushed = scene.grids[0].push(
        act.push(*scene.nodes, kind="evaluate", group="7", ttl=60.0, manifests=(b"for a", b"for b"))
    )
    leases = scene.claim()
    assert [leases[task].manifest for task in pushed.task_ids] == [b"for a", b"for b"]
    lease = leases[pushed.task_ids[0]]
    assert (lease.kind, lease.group, lease.attempt) == ("evaluate", "7", 1)
    assert lease.deadline - lease.created_at == pytest.approx(60.0, abs=1.0)
    assert (lease.key.batch_id, lease.key.run_id, lease.key.node_id) == (pushed.batch_id, scene.runs[0], scene.nodes[0])


def test_messages_of_batches_that_share_a_memory_are_not_mixed_up(scene: Scene):
    """Broadcasts and messages of single tasks, some known from an earlier claim, some empty."""
    shared = scene.grids[0].push(act.push(*scene.nodes, manifests=(b"to all",)))
    own = scene.grids[1].push(act.push(*scene.nodes, manifests=(b"to a", b"to b")))
    empty = scene.grids[0].push(act.push(*scene.nodes, manifests=(b"",)))
    claimed: dict[TaskId, bytes] = {}
    for node in scene.hosted:
        scene.fleet._cursors.look_everywhere()
        claimed |= {lease.key.task_id: lease.manifest for lease in act.claim(scene.fleet, [node])}
    expected = {**dict.fromkeys(shared.task_ids, b"to all"), **dict.fromkeys(empty.task_ids, b"")}
    assert claimed == {**expected, own.task_ids[0]: b"to a", own.task_ids[1]: b"to b"}


@pytest.mark.parametrize(
    ("sizes", "remembered", "size"),
    [
        ((4, 6), 2, 10),
        ((4, 6, 1), 2, 7),  # the first is dropped
        ((4, 6, 7), 1, 7),
        ((4, 11), 1, 11),  # what is larger than the limit stays alone
        ((11,), 1, 11),
        ((None, 10, None), 3, 10),  # that a batch has no broadcast takes no room
        ((None, 10, 1), 1, 1),
    ],
)
def test_broadcasts_are_remembered_up_to_a_limit(
    scene: Scene, sizes: tuple[int | None, ...], remembered: int, size: int
):
    memory = scene.fleet._batches = tasks.Batches(limit_bytes=10)
    for wanted in sizes:
        messages = (b"to a", b"to b") if wanted is None else (b"m" * wanted,)
        scene.grids[0].push(act.push(*scene.nodes, manifests=messages))
        assert {lease.manifest for lease in scene.claim().values()} == set(messages)
    assert (len(memory._known), memory._bytes) == (remembered, size)


def test_a_claim_goes_on_behind_the_last_task_that_it_brought(scene: Scene):
    for _ in range(3):
        pushed = scene.push(0, scene.nodes[0])
        scene.push(1, scene.nodes[0])
    for _ in range(2):
        scene.claim()
    look = scene.fleet._cursors.look(scene.nodes[:1], act.token())
    assert dict(zip(look.known_runs, look.known_after, strict=True)) == {
        scene.runs[0]: pushed.task_ids[0],
        scene.runs[1]: pushed.task_ids[0] + 1,
    }
    assert look.beyonds == [max(scene.runs)]


def test_a_claim_is_written_down(scene: Scene):
    scene.push(0, scene.nodes[0])
    (lease,) = scene.claim().values()
    ((token, epoch, attempt, process_id, leased),) = scene.rows(
        "token, epoch, attempt, process_id, lease_until > clock_timestamp()"
    )
    assert (token, epoch, attempt, leased) == (lease.key.token, scene.hosted[0].epoch, 1, True)
    assert str(process_id) == scene.fleet._connected().process_id


def test_a_repeated_claim_prolongs_the_lease_and_keeps_the_time_of_the_claim(scene: Scene):
    scene.push(0, scene.nodes[0])
    token = act.token()

    def claim() -> None:
        assert len(scene.fleet.claim(scene.nodes, per_node=5, total=5, token=token).leases) == 1

    claim()
    (first,) = scene.rows("attempt, claimed_at")
    assert None not in first
    scene.leases_run_out(*(TaskId(int(str(row[0]))) for row in scene.rows("task_id")))
    claim()
    assert scene.rows("attempt, claimed_at") == [first]
    assert scene.rows("lease_until > clock_timestamp()") == [(True,)]
    assert scene.attempts() == []


def test_a_repeated_claim_brings_the_same_tasks_and_none_besides(scene: Scene):
    for _ in range(4):
        scene.push(0, scene.nodes[0])
    (held,) = act.claim(scene.fleet, scene.hosted, per_node=1)  # by another claim
    token = act.token()
    first = scene.fleet.claim(scene.nodes, per_node=1, total=1, token=token)
    again = scene.fleet.claim(scene.nodes, per_node=3, total=3, token=token)
    assert again == first
    assert held not in again.leases
    assert len(scene.claim()) == 2


def test_a_repeated_claim_of_another_process_by_the_same_token_brings_nothing(scene: Scene):
    """Tokens are random: that two processes draw one must not give either the other's tasks."""
    scene.push(0)
    token = act.token()
    mine = scene.fleet.claim(scene.nodes, per_node=5, total=5, token=token)
    assert len(mine.leases) == 2
    other, hosted = scene.doors.fleet("c")
    for _ in range(2):
        assert other.claim([hosted[0].node_id], per_node=5, total=5, token=token).leases == ()
    assert scene.fleet.claim(scene.nodes[:1], per_node=5, total=5, token=token).leases == mine.leases[:1]


def test_a_repeated_claim_whose_tasks_are_over_is_a_claim(scene: Scene):
    scene.push(0, scene.nodes[0])
    token = act.token()
    first = scene.fleet.claim(scene.nodes, per_node=1, total=1, token=token)
    scene.fleet.submit([act.reply(lease) for lease in first.leases])
    pushed = scene.push(0, scene.nodes[0])
    again = scene.fleet.claim(scene.nodes, per_node=1, total=1, token=token)
    assert [lease.key.task_id for lease in again.leases] == list(pushed.task_ids)


def test_a_claim_that_fails_is_followed_by_a_look_at_everything(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    scene.push(0, scene.nodes[0])
    scene.claim()
    lost = scene.push(0, scene.nodes[0])

    def fail(*_: object) -> dict[int, bytes]:
        raise DatabaseUnreachable("lost in the middle of a claim")

    with monkeypatch.context() as patched:
        patched.setattr(tasks.Batches, "of", fail)
        with pytest.raises(DatabaseUnreachable, match="in the middle"):
            act.claim(scene.fleet, scene.hosted)
    # it went through nevertheless: what it took is found when the leases have run out
    assert scene.rows("task_id", f"token <> 0 AND task_id = {lost.task_ids[0]}")
    scene.leases_run_out(*lost.task_ids)
    assert scene.fleet._cursors.look(scene.nodes, act.token()).full == set(scene.nodes)
    assert list(scene.claim()) == list(lost.task_ids)


def test_a_node_gets_the_tasks_of_its_own_only(scene: Scene):
    scene.push(0)
    assert {lease.key.node_id for lease in act.claim(scene.fleet, scene.hosted[:1])} == {scene.nodes[0]}
    assert {lease.key.node_id for lease in act.claim(scene.fleet, scene.hosted)} == {scene.nodes[1]}


def test_what_is_overdue_or_tried_too_often_is_not_claimed(scene: Scene):
    late, tried, due = scene.push(0), scene.push(0), scene.push(0)
    scene.deadlines_pass(late)
    with scene.db.connection() as connection:
        for task_id, attempt in zip(tried.task_ids, (tasks.MAX_ATTEMPTS, tasks.MAX_ATTEMPTS - 1), strict=True):
            connection.execute("UPDATE flq_state.task SET attempt = %s WHERE task_id = %s", [attempt, task_id])
    leases = scene.claim()
    assert set(leases) == {tried.task_ids[1], *due.task_ids}
    assert leases[tried.task_ids[1]].attempt == tasks.MAX_ATTEMPTS


def test_a_task_left_by_the_process_before_is_claimed_while_its_lease_holds(scene: Scene):
    pushed = scene.push(0)
    old = scene.claim()
    fleet, hosted = scene.doors.fleet("a")
    new = scene.claim(fleet=fleet, hosted=hosted)
    assert list(new) == [pushed.task_ids[0]]
    assert new[pushed.task_ids[0]].attempt == 2
    # node b stays with the old process, and so does its task
    assert scene.fleet.renew([old[pushed.task_ids[1]].key]).lost == frozenset()
    assert scene.rows("task_id, epoch") == [
        (pushed.task_ids[0], hosted[0].epoch),
        (pushed.task_ids[1], scene.hosted[1].epoch),
    ]


def test_a_process_renews_nothing_of_a_node_that_was_taken_over(scene: Scene):
    """Though nobody has claimed the task again yet, and though the epoch of its other node is the same as ever."""
    pushed = scene.push(0)
    leases = scene.claim()
    scene.doors.fleet("a")
    lost, kept = (leases[task].key for task in pushed.task_ids)
    renewed = scene.fleet.renew([lost, kept])
    assert renewed.lost == {lost.task_id}
    assert renewed.superseded == {scene.nodes[0]}


def test_nodes_taken_over_are_told_and_the_others_are_served(scene: Scene):
    pushed = scene.push(0)
    scene.doors.fleet("a")
    claimed = scene.fleet.claim(scene.nodes, per_node=5, total=5, token=act.token())
    assert claimed.superseded == {scene.nodes[0]}
    assert [lease.key.task_id for lease in claimed.leases] == [pushed.task_ids[1]]
    lost = TaskKey(
        node_id=scene.nodes[0], run_id=scene.runs[0], task_id=pushed.task_ids[0], batch_id=pushed.batch_id, token=1
    )
    renewed = scene.fleet.renew([lost, claimed.leases[0].key])
    assert renewed.lost == {lost.task_id}
    assert renewed.superseded == {scene.nodes[0]}


def test_a_node_taken_over_gets_nothing_of_a_run_that_the_process_knows(scene: Scene):
    scene.push(0)
    assert len(scene.claim()) == 2
    scene.doors.fleet("a")
    later = scene.push(0)
    act.poll(scene.fleet)
    claimed = scene.fleet.claim(scene.nodes, per_node=5, total=5, token=act.token())
    assert claimed.superseded == {scene.nodes[0]}
    assert [lease.key.task_id for lease in claimed.leases] == [later.task_ids[1]]


def test_a_node_that_is_not_there_any_more_is_told_as_taken_over(scene: Scene):
    gone = NodeId(10**6)
    cursors = Cursors()
    cursors.host([gone])
    claimed = tasks.claim(
        scene.db, process_id=str(uuid.uuid4()), epochs={gone: 1}, cursors=cursors, per_node=1, total=1,
        token=act.token(), known=tasks.Batches(),
    )  # fmt: skip
    assert claimed.leases == ()
    assert claimed.superseded == {gone}
    key = TaskKey(node_id=gone, run_id=scene.runs[0], task_id=TaskId(1), batch_id=BatchId(1), token=1)
    assert tasks.renew(scene.db, [key], {gone: 1}).superseded == {gone}


def test_leases_come_by_node_and_by_task(scene: Scene):
    for run in (1, 0, 1):
        scene.push(run, *reversed(scene.nodes))
    scene.fleet._cursors.look_everywhere()
    keys = [lease.key for lease in act.claim(scene.fleet, scene.hosted)]
    assert keys == sorted(keys, key=lambda key: (key.node_id, key.task_id))
    assert len(keys) == 6


# ---------------------------------------------------------------------- the history of attempts


def test_every_end_of_an_attempt_is_in_the_history(scene: Scene):
    pushed = [scene.push(0, scene.nodes[0]) for _ in range(5)]
    released, displaced, cancelled, expired, finished = (p.task_ids[0] for p in pushed)
    leases = scene.claim()
    scene.fleet.release([leases[released].key])
    scene.leases_run_out(displaced)
    scene.claim()
    scene.fleet.submit([act.reply(leases[finished], status=ResultStatus.ERROR, error_code=2, error_text="no")])
    scene.deadlines_pass(pushed[3])
    with scene.db.transaction() as tx:
        assert tasks.expire_overdue(tx) == 1
        assert tasks.cancel_batches(tx, scene.runs[0], [pushed[2].batch_id], reason="a test") == 1
    assert scene.attempts() == [
        (released, 1, "released"),
        (displaced, 1, "displaced"),
        (cancelled, 1, "cancelled"),
        (expired, 1, "expired"),
        (finished, 1, "error"),
    ]


def test_a_task_that_nobody_had_ends_without_an_attempt(scene: Scene):
    never = scene.push(0, scene.nodes[0])
    with scene.db.transaction() as tx:
        tasks.cancel_batches(tx, scene.runs[0], [never.batch_id], reason="a test")
    given_back = scene.push(0, scene.nodes[0])
    scene.fleet.release([lease.key for lease in scene.claim().values()])
    with scene.db.transaction() as tx:
        tasks.cancel_batches(tx, scene.runs[0], [given_back.batch_id], reason="a test")
    assert scene.attempts() == [(given_back.task_ids[0], 1, "released")]


def test_a_task_given_back_has_no_holder(scene: Scene):
    scene.push(0, scene.nodes[0])
    (lease,) = scene.claim().values()
    scene.fleet.release([lease.key])
    assert scene.rows("token, process_id, claimed_at, lease_until < clock_timestamp(), attempt") == [
        (0, None, None, True, 1)
    ]
    assert scene.fleet.submit([act.reply(lease)]) == {lease.key.task_id: Verdict.FENCED}
    scene.fleet.release([lease.key])  # once more, in vain
    assert scene.attempts() == [(lease.key.task_id, 1, "released")]


# ---------------------------------------------------------------------- who is told


def test_a_push_is_told_once_with_its_lowest_task(scene: Scene, ear: Ear):
    pushed = scene.push(0)
    lowest = min(pushed.task_ids)
    assert ear.heard() == [Notice(notify.TASKS, f"{scene.runs[0]} {pushed.batch_id} {lowest}")]


def test_what_is_given_back_is_told_once_for_each_run_with_the_lowest_task(scene: Scene, ear: Ear):
    first, second, other = scene.push(0), scene.push(0), scene.push(1)
    leases = scene.claim()
    ear.heard()
    scene.fleet.release([leases[task].key for task in (*second.task_ids, *first.task_ids, *other.task_ids)])
    assert sorted(notice.payload for notice in ear.heard()) == [
        f"{scene.runs[0]} {first.batch_id} {min(first.task_ids)}",
        f"{scene.runs[1]} {other.batch_id} {min(other.task_ids)}",
    ]


def test_a_flush_of_results_is_told_once_to_each_run(scene: Scene, ear: Ear):
    scene.push(0)
    scene.push(1)
    leases = scene.claim()
    ear.heard()
    scene.fleet.submit([act.reply(lease) for lease in leases.values()])
    assert sorted(notice.channel for notice in ear.heard()) == sorted(map(notify.results_channel, scene.runs))
    scene.fleet.submit([act.reply(lease) for lease in leases.values()])
    assert ear.heard() == []


def test_a_cancellation_is_told_to_the_run_once(scene: Scene, ear: Ear):
    pushed = scene.push(0)
    ear.heard()
    scene.grids[0].cancel([pushed.batch_id])
    assert [notice.channel for notice in ear.heard()] == [notify.results_channel(scene.runs[0])]


def test_a_claim_tells_nobody(scene: Scene, ear: Ear):
    scene.push(0)
    ear.heard()
    assert len(scene.claim()) == 2
    assert ear.heard() == []
