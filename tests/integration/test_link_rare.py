"""What seldom happens at the doors: outages in the middle, things that have vanished, calls for nothing, restarts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from flq.errors import (
    BrokerUnreachable,
    DatabaseUnreachable,
    LinkError,
    ObjectCorrupt,
    ObjectUnknown,
    QuotaExceeded,
    RunUnknown,
    SchemaError,
    UsageError,
)
from flq.link import (
    attempts,
    batches,
    bundles,
    database,
    grid,
    logs,
    maintenance,
    names,
    objects,
    quotas,
    runs,
    schema,
    stores,
    superlink,
    verify,
)
from flq.link.control import DbControl
from flq.link.database import Database
from flq.link.dispatch import Dispatcher
from flq.link.fleet import DbFleet
from flq.link.superlink import SuperLink
from flq.local.state import Addresses
from flq.wire.fleet import NodeSpec
from flq.wire.ids import ObjectHash, RunId
from flq.wire.runs import FeedCursor, Job
from flq.wire.status import Outcome, RunStatus
from tests import pooler
from tests.integration import link_acts as act
from tests.integration.link_acts import Doors
from tests.waiting import eventually

NOWHERE = RunId(10**6)


def status(db: Database, run_id: RunId) -> RunStatus:
    (row,) = runs.listing(db, run_id=run_id)
    return row.status


# ---------------------------------------------------------------------- runs and their attempts


def test_a_stop_of_a_run_that_is_over_changes_nothing(db: Database):
    claim = act.start_attempt(db)
    run_id = claim.run.run_id
    attempts.finish(db, run_id=run_id, token=claim.token, outcome=Outcome.FAILED, reason="a test", exit_code=1)
    attempts.stop(db, run_id, actor="ada", reason=None)
    (row,) = runs.listing(db, run_id=run_id)
    assert (row.status, row.outcome, row.stop_requested) == (RunStatus.FINISHED, Outcome.FAILED, False)


def test_a_run_is_asked_to_stop_once(doors: Doors, db: Database):
    _, claim = doors.grid()
    for _ in range(2):
        attempts.stop(db, claim.run.run_id, actor="ada", reason="enough")
    with db.connection() as connection:
        row = connection.execute(
            "SELECT count(*) FROM flq_state.run_event WHERE event = 'stop requested' AND run_id = %s",
            [claim.run.run_id],
        ).fetchone()
    assert row == (1,)


def test_an_attempt_that_was_replaced_ends_nothing(db: Database):
    claim = act.start_attempt(db)
    run_id = claim.run.run_id
    assert attempts.release(db, run_id=run_id, token=claim.token, reason="a test")
    ended = {"outcome": Outcome.COMPLETED, "reason": None, "exit_code": 0}
    assert not attempts.finish(db, run_id=run_id, token=claim.token, **ended)  # type: ignore[arg-type]
    assert not attempts.release(db, run_id=run_id, token=claim.token, reason="a test")
    assert status(db, run_id) == RunStatus.PENDING


def test_a_job_that_the_broker_did_not_take_is_published_when_it_is_back(
    db: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("flq.link.dispatch.RETRY_SECONDS", 0.0, raising=False)
    monkeypatch.setattr(attempts, "PATIENCE_SECONDS", 0.0)
    act.superexec(db, slots=5)
    down = True
    published: list[Job] = []

    def publish(job: Job) -> None:
        if down:
            raise BrokerUnreachable("the broker cannot be reached")
        published.append(job)

    dispatcher = Dispatcher(db, publish)
    submitted = [runs.submit(db, act.submission()) for _ in range(2)]
    assert [dispatcher.step() for _ in range(3)] == [0, 0, 0]
    assert caplog.text.count("wait for the broker") == 1
    assert all(runs.waiting(db, run_id) for run_id in submitted)
    down = False

    def all_published() -> bool:
        dispatcher.step()
        return {job.run_id for job in published} == set(submitted)

    eventually(all_published, what="the jobs")


def test_a_run_that_is_not_there_is_unknown(db: Database):
    with db.transaction() as tx, pytest.raises(RunUnknown, match=str(NOWHERE)):
        runs.lock(tx, NOWHERE)
    with pytest.raises(RunUnknown, match=str(NOWHERE)):
        runs.info(db, NOWHERE)


def test_a_run_that_vanishes_in_the_middle_of_a_call_is_told(dsn: str):
    control = DbControl(dsn)
    with pytest.raises(DatabaseUnreachable, match=f"run {NOWHERE} has vanished"):
        control._row(NOWHERE)
    control.close()


def test_names_go_on_when_the_short_ones_are_taken(db: Database, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(names, "ADJECTIVES", "calm")
    monkeypatch.setattr(names, "NOUNS", "otter")
    for _ in range(3):
        runs.submit(db, act.submission())
    found = [run.name for run in runs.listing(db)]
    assert found[-1] == "calm-otter"
    assert all(name.startswith("calm-otter-") for name in found[:-1])
    assert len(set(found)) == 3


# ---------------------------------------------------------------------- payloads


def test_a_bundle_that_is_missing_or_damaged_is_told(db: Database):
    with pytest.raises(ObjectUnknown, match="there is no bundle"):
        bundles.read(db, ObjectHash(b"x" * 32))
    with db.transaction() as tx:
        name = bundles.store(tx, b"an app")
        tx.execute("ALTER TABLE flq_state.bundle DISABLE TRIGGER USER")
        tx.execute("UPDATE flq_state.bundle SET data = 'another' WHERE bundle_hash = %s", [name])
    with pytest.raises(ObjectCorrupt, match="does not have its hash"):
        bundles.read(db, name)


def test_calls_for_nothing_do_nothing(db: Database):
    assert objects.missing(db, []) == frozenset()
    logs.append(db, [])
    run_id = runs.submit(db, act.submission())
    assert logs.read(db, run_id, FeedCursor()).lines == ()


def test_where_objects_are_stored_can_be_asked(db: Database, tmp_path: Path):
    assert stores.chosen(db) is None
    stores.choose(db, tmp_path / "objects")
    assert stores.chosen(db) == tmp_path / "objects"
    stores.choose(db, None)
    assert stores.chosen(db) is None


def test_an_object_that_is_shorter_or_longer_than_its_row_says_is_corrupt(db: Database):
    name = act.object_of(b"payload")
    objects.put(db, name, memoryview(b"payload"))
    with db.connection() as connection:
        connection.execute("UPDATE flq_state.object SET size = 3")
    with pytest.raises(ObjectCorrupt, match="more bytes"):
        objects.read(db, name, memoryview(bytearray(3)))
    with db.connection() as connection:
        connection.execute("UPDATE flq_state.object SET size = 30")
    with pytest.raises(ObjectCorrupt, match="7 of 30 bytes"):
        objects.read(db, name, memoryview(bytearray(30)))


def test_an_upload_whose_chunks_are_gone_in_the_middle_begins_again(db: Database, monkeypatch: pytest.MonkeyPatch):
    """A collection of the same object has taken them: the row would name bytes that are not there."""
    data = b"0123456789"
    tries = 0
    insert = stores.insert

    def once_in_vain(*arguments: object) -> None:
        nonlocal tries
        tries += 1
        if tries > 1:
            insert(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(stores, "insert", once_in_vain)
    name = act.object_of(data)
    objects.put(db, name, memoryview(data))
    assert tries == 2
    into = bytearray(10)
    objects.read(db, name, memoryview(into))
    assert bytes(into) == data


def test_an_object_collected_while_it_is_verified_is_none_that_is_broken(db: Database, monkeypatch: pytest.MonkeyPatch):
    name = act.object_of(b"payload")
    objects.put(db, name, memoryview(b"payload"))
    read = objects.read

    def collected_first(db: Database, object_hash: ObjectHash, into: memoryview) -> None:
        with db.connection() as connection:
            connection.execute("DELETE FROM flq_state.object_pin")
            connection.execute("DELETE FROM flq_state.object")
        read(db, object_hash, into)

    monkeypatch.setattr(objects, "read", collected_first)
    (finding,) = (found for found in verify.run(db, payloads=True) if found.invariant == verify.PAYLOADS)
    assert finding.holds


def test_a_push_that_can_never_fit_is_refused_and_one_that_waits_is_told_once(
    doors: Doors, db: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(grid, "ROOM_SECONDS", 0.01)
    fleet, hosted = doors.fleet("a", "b")
    door, claim = doors.grid()
    nodes = [node.node_id for node in hosted]
    with db.transaction() as tx:
        quotas.limit(tx, claim.run.run_id, max_open_tasks=1, max_bytes=None)
    with pytest.raises(QuotaExceeded, match="2 tasks is more than"):
        door.push(act.push(*nodes))
    door.push(act.push(nodes[0]))
    tries = 0
    push = batches.push

    def counted(*arguments: object, **named: object) -> object:
        nonlocal tries
        tries += 1
        return push(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr("flq.link.grid.push_batch", counted)
    waiting = threading.Thread(target=door.push, args=(act.push(nodes[1]),))
    waiting.start()
    eventually(lambda: tries > 3, what="some tries")
    fleet.submit([act.reply(lease) for lease in act.claim(fleet, hosted)])
    waiting.join(20)
    assert not waiting.is_alive()
    assert caplog.text.count("the push waits for open tasks") == 1


# ---------------------------------------------------------------------- connections


def test_a_serverapp_gives_up_when_the_database_stays_away(doors: Doors, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(grid, "OUTAGE_SECONDS", 0.2)
    door, _ = doors.grid()
    door._db.close()
    with pytest.raises(DatabaseUnreachable, match="closed"):
        door.nodes()


def test_a_supernode_that_nobody_knows_any_more_hears_of_it(doors: Doors, db: Database):
    fleet, _ = doors.fleet("a")
    fleet.heartbeat()
    with db.connection() as connection:
        connection.execute("UPDATE flq_state.node SET process_id = NULL")
        connection.execute("DELETE FROM flq_state.process")
    with pytest.raises(LinkError, match="does not know this process"):
        fleet.heartbeat()


def test_a_supernode_that_has_not_connected_can_do_nothing_but_leave(dsn: str):
    fleet = DbFleet(dsn)
    with pytest.raises(LinkError, match="has not connected"):
        fleet.heartbeat()
    with pytest.raises(LinkError, match="has not connected"):
        fleet.wait(0)
    fleet.disconnect()
    fleet.disconnect()


def test_a_supernode_that_connects_again_listens_on(dsn: str, db: Database):
    fleet = DbFleet(dsn)
    spec = act.process()
    first = fleet.connect(spec, [NodeSpec(name="a")])
    assert fleet.connect(spec, [NodeSpec(name="a")]) == first
    fleet.disconnect()
    with db.connection() as connection:
        row = connection.execute(
            "SELECT count(*) FROM flq_state.process WHERE alive_until > clock_timestamp()"
        ).fetchone()
    assert row == (0,)


def test_a_mistake_in_a_statement_is_not_taken_for_an_outage(dsn: str):
    with pytest.raises(psycopg.errors.UndefinedTable), database.connecting(), psycopg.connect(dsn) as connection:
        connection.execute("SELECT FROM nowhere")


@pytest.mark.skipif(pooler.PROGRAM is None, reason=pooler.MISSING)
def test_a_pooler_that_takes_our_options_and_drops_them_is_found_out(servers: Addresses, dsn: str):
    """It lets `options` pass, which others refuse: then the process id tells."""
    with pooler.pgbouncer(servers.dsn, "ignore_startup_parameters = options") as pooled:
        behind = make_conninfo(pooled, dbname=str(conninfo_to_dict(dsn)["dbname"]))
        for _ in range(2):
            connection = database.connect(behind, application="flq test")
            assert database.is_pooled(connection)
            connection.close()


# ---------------------------------------------------------------------- the schema


def test_without_a_dsn_there_is_no_database_to_upgrade(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("FLQ_HOME", str(tmp_path))
    monkeypatch.delenv("FLQ_DSN", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no database is named"):
        schema.main(["upgrade"])
    with pytest.raises(UsageError, match="usage"):
        schema.main(["downgrade"])


def test_the_upgrade_command_upgrades_what_the_environment_names(dsn: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FLQ_DSN", dsn)
    assert schema.main(["upgrade"]) == 0
    assert schema.current(dsn) == schema.head()


def test_a_revision_that_this_flq_does_not_know_is_told(dsn: str, db: Database):
    with db.connection() as connection:
        connection.execute("UPDATE flq_state.alembic_version SET version_num = '9999'")
    for refused in (schema.upgrade, schema.check):
        with pytest.raises(SchemaError, match="at schema revision 9999") as caught:
            refused(dsn)
        assert "upgrade flq" in str(caught.value.hint)


def test_an_upgrade_whose_connection_is_cut_is_an_outage(dsn: str):
    with pytest.raises(DatabaseUnreachable), schema.connection(dsn) as opened:
        opened.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")


def test_an_upgrade_of_no_database_is_an_outage():
    with pytest.raises(DatabaseUnreachable):
        schema.upgrade("host=/nowhere dbname=flq")


# ---------------------------------------------------------------------- the SuperLink


@pytest.fixture
def sweeping(db: Database) -> Iterator[Callable[[str], None]]:
    """Holds the lock of a sweep, as another SuperLink does that is at it."""
    holder = db.open_connection()

    def hold(name: str) -> None:
        holder.execute("BEGIN")
        assert holder.execute(maintenance.SQL["try_lock"], {"sweep": name}).fetchone() == (True,)

    yield hold
    holder.close()


def test_what_another_superlink_is_at_is_left_to_it(db: Database, sweeping: Callable[[str], None]):
    with db.connection() as connection:
        connection.execute("DROP TABLE flq_state.result_p000001")
    sweeping("partitions")
    assert maintenance.make_partitions(db) == []


def test_an_outage_in_the_middle_of_the_sweeps_ends_them(db: Database, monkeypatch: pytest.MonkeyPatch):
    def away(*_: object) -> int:
        raise DatabaseUnreachable("away")

    monkeypatch.setattr(attempts, "release_abandoned", away)
    with pytest.raises(DatabaseUnreachable, match="away"):
        maintenance.sweep(db)


def test_a_superlink_that_is_stopped_before_it_serves_does_not_begin(dsn: str):
    link = SuperLink(dsn, lambda _: None)
    link.stop()
    ready = threading.Event()
    link.serve(ready.set)
    assert ready.is_set()


def test_a_superlink_serves_until_it_is_told_to_stop(dsn: str, db: Database, monkeypatch: pytest.MonkeyPatch):
    """And makes partitions by the clock."""
    monkeypatch.setattr(maintenance, "PARTITIONS_EVERY_SECONDS", 0.0)
    with db.connection() as connection:
        connection.execute("DROP TABLE flq_state.result_p000001")
    jobs: list[Job] = []
    stop, ready = threading.Event(), threading.Event()
    serving = threading.Thread(
        target=superlink.serve, args=(dsn, jobs.append), kwargs={"stop": stop, "ready": ready.set}
    )
    serving.start()
    assert ready.wait(20)
    with db.connection() as connection:
        connection.execute("DROP TABLE IF EXISTS flq_state.result_p000001")

    def made() -> bool:
        with db.connection() as connection:
            row = connection.execute("SELECT to_regclass('flq_state.result_p000001') IS NOT NULL").fetchone()
        return row == (True,)

    eventually(made, what="the partition")
    stop.set()
    serving.join(20)
    assert not serving.is_alive()


def test_a_superlink_that_cannot_say_goodbye_ends_all_the_same(
    dsn: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    def away(*_: object) -> None:
        raise DatabaseUnreachable("PostgreSQL has gone")

    monkeypatch.setattr("flq.link.processes.retire", away)
    link = SuperLink(dsn, lambda _: None)
    link.stop()
    link.serve(lambda: None)
    assert "could not say goodbye: PostgreSQL has gone" in caplog.text


def test_a_superlink_without_a_database_says_so(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DatabaseUnreachable):
        SuperLink("host=/nowhere dbname=flq", lambda _: None).serve(lambda: None)
