"""What the doors do at their edges: bad replies, closed and unreachable databases, messages of many sizes."""

from __future__ import annotations

import threading

import psycopg
import pytest

from flq.errors import AttemptFenced, DatabaseUnreachable, LinkError, UsageError
from flq.link import arrays, attempts, batches, database, notify, tasks
from flq.link.database import Database
from flq.wire.runs import FeedCursor
from flq.wire.status import ResultStatus, Verdict
from tests.integration import link_acts as act
from tests.integration.link_acts import Doors


def cut_connections(dsn: str) -> None:
    """As a restart of the server does, but for the wait."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def test_arrays_in_binary_form_are_what_the_server_reads(db: Database):
    with db.connection() as connection:
        row = connection.execute(
            "SELECT %s::bigint[], %s::float8[], %s::smallint[], %s::text[], %s::bytea[], %s::bigint[], %s::text[]",
            [
                arrays.bigints([1, -(2**63), 2**63 - 1]), arrays.doubles([0.5, float("inf")]),
                arrays.smallints([1, None, -3]), arrays.texts(["a", None, '\u00e9 {}"\\,']),
                arrays.byteas([b"", None, b"\0\xff"]), arrays.bigints([]), arrays.texts([]),
            ],
        ).fetchone()  # fmt: skip
    assert row == (
        [1, -(2**63), 2**63 - 1], [0.5, float("inf")], [1, None, -3], ["a", None, '\u00e9 {}"\\,'],
        [b"", None, b"\0\xff"], [], [],
    )  # fmt: skip


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_reply_that_cannot_be_stored_is_named_and_the_others_can_be(doors: Doors, place: int):
    fleet, hosted = doors.fleet("a", "b", "c")
    grid, _ = doors.grid()
    grid.push(act.push(*(node.node_id for node in hosted)))
    leases = act.claim(fleet, hosted)
    replies = [act.reply(lease) for lease in leases]
    bad = act.reply(leases[place], status=ResultStatus.ERROR)  # an error without a code
    replies[place] = bad
    with pytest.raises(LinkError, match=f"the reply of task {bad.key.task_id} cannot be stored"):
        fleet.submit(replies)
    verdicts = fleet.submit([reply for reply in replies if reply is not bad])
    assert set(verdicts.values()) <= {Verdict.ACCEPTED, Verdict.DUPLICATE}
    assert fleet.submit([act.reply(leases[place])]) == {bad.key.task_id: Verdict.ACCEPTED}


def test_one_task_twice_in_a_flush_is_applied_once(doors: Doors):
    fleet, hosted = doors.fleet("a")
    grid, _ = doors.grid()
    pushed = grid.push(act.push(hosted[0].node_id))
    (lease,) = act.claim(fleet, hosted)
    fleet.submit([act.reply(lease, b"first"), act.reply(lease, b"second")])
    (result,) = grid.results(grid.arrived([pushed.batch_id], FeedCursor()).keys)
    assert result.manifest == b"first"


def test_a_late_result_is_told_in_the_history_once(doors: Doors, db: Database):
    fleet, hosted = doors.fleet("a", "b")
    grid, claim = doors.grid()
    pushed = grid.push(act.push(*(node.node_id for node in hosted)))
    leases = act.claim(fleet, hosted)
    grid.cancel([pushed.batch_id])
    for flush in (leases[:1], leases, leases):  # both by one claim, and by one token
        fleet.submit([act.reply(lease) for lease in flush])
    with db.connection() as connection:
        rows = connection.execute(
            "SELECT run, actor, reason, details ->> 'count', details -> 'tasks' FROM flq.events"
            " WHERE event = 'late results' ORDER BY event_id"
        ).fetchall()
    reason = "1 came after their claims had ended"
    assert rows == [(claim.run.name, "supernode", reason, "1", [task]) for task in sorted(pushed.task_ids)]


def test_broadcasts_that_are_not_used_any_more_leave_the_memory(doors: Doors, db: Database):
    fleet, hosted = doors.fleet("a")
    grid, _ = doors.grid()
    known = fleet._batches = tasks.Batches(limit_bytes=250)
    for size in (100, 100, 100):
        grid.push(act.push(hosted[0].node_id, manifests=(b"m" * size,)))
        assert [len(lease.manifest) for lease in act.claim(fleet, hosted)] == [size]
    assert len(known._known) == 2
    assert known._bytes == 200


def test_of_broadcasts_the_last_ones_stay_in_memory(doors: Doors, db: Database, monkeypatch: pytest.MonkeyPatch):
    fleet, hosted = doors.fleet("a")
    grid, _ = doors.grid()
    monkeypatch.setattr(tasks, "KEPT_BATCHES", 2)
    for _ in range(4):
        grid.push(act.push(hosted[0].node_id, manifests=(b"m",)))
        assert [lease.manifest for lease in act.claim(fleet, hosted)] == [b"m"]
    assert len(fleet._batches._known) == 2


def test_a_serverapp_waits_for_a_database_that_went_away(doors: Doors, dsn: str, caplog: pytest.LogCaptureFixture):
    grid, claim = doors.grid()
    cut_connections(dsn)
    grid.wait(0)  # hears of the cut, and tries again
    assert "the run waits for it" in caplog.text
    assert grid.run().run_id == claim.run.run_id
    assert grid.bundle(grid.run().bundle) == b"bundle"


def test_a_serverapp_that_cannot_begin_or_repeat_is_fenced(doors: Doors, db: Database):
    _, hosted = doors.fleet("a")
    grid, claim = doors.grid()
    push = act.push(hosted[0].node_id, sequence=0)
    grid.push(push)
    attempts.release(db, run_id=claim.run.run_id, token=claim.token, reason="a test")
    with pytest.raises(AttemptFenced):
        grid.begin()
    for repeat in (batches._repeat, batches._diverge):
        with pytest.raises(AttemptFenced):
            repeat(db, claim.run.run_id, claim.token, push)


def test_a_closed_database_and_a_closed_listener_say_so(dsn: str):
    db = Database(dsn, application="flq test")
    with db.connection() as taken:
        db.close()
    assert taken.closed
    with pytest.raises(DatabaseUnreachable, match="closed"), db.connection():
        pass
    listener = notify.Listener(dsn, notify.TASKS)
    listener.close()
    with pytest.raises(DatabaseUnreachable, match="closed"):
        listener.wait(0)


def test_a_listener_is_ended_by_an_interrupt_and_hears_what_came_before(dsn: str, db: Database):
    listener = notify.Listener(dsn, notify.TASKS)
    waiting = threading.Thread(target=listener.wait, args=(60,))
    waiting.start()
    listener.interrupt()
    waiting.join(20)
    assert not waiting.is_alive()
    for _ in range(100_000):  # more than the pipe holds
        listener.interrupt()
    with db.connection() as connection:
        notify.tell(connection, notify.TASKS, "1 2 3")
    heard: list[notify.Notice] = []
    while not heard:
        heard = listener.wait(5)
    assert heard == [notify.Notice(notify.TASKS, "1 2 3")]
    listener.close()


def test_connections_cut_while_idle_are_not_handed_out(dsn: str, db: Database):
    with db.connection() as first, db.connection():
        pass
    cut_connections(dsn)
    with db.connection() as fresh:
        assert fresh is not first
        assert fresh.execute("SELECT 1").fetchone() == (1,)


def test_a_connection_cut_while_in_use_is_told_as_an_outage(dsn: str, db: Database):
    def use() -> None:
        with db.connection() as connection:
            cut_connections(dsn)
            connection.execute("SELECT 1")

    with pytest.raises(DatabaseUnreachable):
        use()
    with db.connection() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize(
    ("dsn", "error"), [("host=/nowhere dbname=flq", DatabaseUnreachable), ("no dsn at all", UsageError)]
)
def test_a_database_that_is_not_there_and_a_dsn_that_is_none(dsn: str, error: type[Exception]):
    with pytest.raises(error):
        database.connect(dsn, application="flq test")
