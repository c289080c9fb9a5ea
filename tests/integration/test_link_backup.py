"""Dump and restore, with a run at work."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flq.errors import LinkError, SchemaError, UsageError
from flq.link import attempts, backup, maintenance, runs, verify
from flq.link.control import DbControl
from flq.link.database import Database
from flq.local import binaries
from flq.local.state import Addresses
from flq.settings import Embedded
from flq.wire.runs import FeedCursor
from flq.wire.status import Outcome, RunStatus
from tests.integration import link_acts as act
from tests.integration.link_acts import Doors
from tests.integration.used import Used, checkpoint, store

PROGRAMS = [binaries.postgres(Embedded())]


@pytest.fixture
def fresh(servers: Addresses, admin: Callable[[str], None]) -> Iterator[str]:
    """An empty database."""
    admin("CREATE DATABASE flq_restored")
    yield servers.dsn.replace("dbname=flq", "dbname=flq_restored")
    admin("DROP DATABASE flq_restored WITH (FORCE)")


def test_a_run_that_was_at_work_goes_on_in_the_restored_database(
    doors: Doors, db: Database, dsn: str, fresh: str, tmp_path: Path
):
    used = Used(doors, db)
    finished = used.completed()
    grid, claim = doors.grid()
    used.round(grid, claim, 0)
    pushed = grid.push(act.push(*used.nodes, sequence=2, round=2))
    leased, _ = act.claim(used.fleet, used.hosted)
    used.submit([act.reply(leased)])
    file = tmp_path / "backup.flq"
    size = backup.dump(dsn, file, programs=PROGRAMS)
    assert (size, stat.S_IMODE(file.stat().st_mode)) == (file.stat().st_size, 0o600)
    assert list(tmp_path.iterdir()) == [file]
    backup.restore(fresh, file, programs=PROGRAMS)

    restored = Database(fresh, application="flq test")
    assert [found.invariant for found in verify.run(restored, payloads=True) if not found.holds] == []
    assert {row.run_id: row.status for row in runs.listing(restored)} == {
        claim.run.run_id: RunStatus.RUNNING,
        finished: RunStatus.FINISHED,
    }
    with restored.connection() as connection:
        connection.execute("UPDATE flq_state.run_attempt SET lease_until = clock_timestamp() - interval '1 s'")
    maintenance.sweep(restored)
    there = Doors(fresh, restored)
    with there.opened:
        again, second = there.grid(claim.run.run_id)
        assert second.attempt == 2
        held = again.last_checkpoint()
        assert held is not None
        assert held.round == 0
        (model,) = held.objects
        again.read(model, memoryview(bytearray(again.size(model))))
        repeated = again.push(act.push(*used.nodes, sequence=2, round=2))
        assert (repeated.replayed, repeated.task_ids) == (True, pushed.task_ids)
        page = again.arrived([repeated.batch_id], FeedCursor())
        assert [key.task_id for key in page.keys] == [leased.key.task_id]
        assert again.arrived([repeated.batch_id], page.cursor).keys == ()
        fleet, hosted = there.fleet("a", "b")
        assert [node.node_id for node in hosted] == used.nodes
        fleet.submit([act.reply(lease) for lease in act.claim(fleet, hosted)])
        assert len(again.arrived([repeated.batch_id], page.cursor).keys) == 1
        again.commit_round(checkpoint(1, frozenset({store(again)}), 4))
        attempts.finish(
            restored, run_id=second.run.run_id, token=second.token, outcome=Outcome.COMPLETED, reason=None, exit_code=0
        )
    assert [found.invariant for found in verify.run(restored) if not found.holds] == []
    restored.close()
    control = DbControl(fresh)
    assert control.query("select count(*) from runs where outcome = 'completed'").rows == ((2,),)
    control.close()


def test_transaction_ids_of_another_cluster_are_settled(
    doors: Doors, db: Database, dsn: str, fresh: str, tmp_path: Path
):
    Used(doors, db).completed()
    with db.connection() as connection:
        connection.execute("UPDATE flq_state.result SET xid = '4000000000000'")
        connection.execute("UPDATE flq_state.log_line SET xid = '4000000000000'")
    backup.dump(dsn, tmp_path / "backup", programs=PROGRAMS)
    backup.restore(fresh, tmp_path / "backup", programs=PROGRAMS)
    restored = Database(fresh, application="flq test")
    with restored.connection() as connection:
        for table in ("result", "log_line"):
            ahead = f"SELECT FROM flq_state.{table} WHERE xid >= pg_current_xact_id()"
            assert connection.execute(ahead.encode()).rowcount == 0
    restored.close()


def test_only_an_empty_database_is_restored_into(dsn: str, fresh: str, tmp_path: Path):
    file = tmp_path / "backup"
    with pytest.raises(SchemaError, match="without flq's schema"):
        backup.dump(fresh, file, programs=PROGRAMS)
    backup.dump(dsn, file, programs=PROGRAMS)
    with pytest.raises(SchemaError, match="already"):
        backup.restore(dsn, file, programs=PROGRAMS)
    with pytest.raises(UsageError, match="no file"):
        backup.restore(fresh, tmp_path / "nothing", programs=PROGRAMS)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(LinkError, match="pg_restore failed"):
        backup.restore(fresh, file, programs=PROGRAMS)
    with pytest.raises(UsageError, match="cannot be written"):
        backup.dump(dsn, tmp_path / "no" / "folder", programs=PROGRAMS)


def test_programs_that_are_too_old_are_named(dsn: str, tmp_path: Path):
    old = tmp_path / "pg_dump"
    old.write_text("#!/bin/sh\necho 'pg_dump (PostgreSQL) 9.6'\n")
    old.chmod(0o755)
    with pytest.raises(LinkError, match=f"{old} is of version 9") as caught:
        backup.dump(dsn, tmp_path / "backup", programs=[tmp_path / "nothing", tmp_path])
    assert "FLQ_PG_BIN" in (caught.value.hint or "")
    with pytest.raises(LinkError, match="there is no pg_dump"):
        backup.dump(dsn, tmp_path / "backup", programs=[])


def test_the_address_is_not_in_the_command_line(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    commands: list[str] = []
    run = subprocess.run

    def watched(command, **options):
        commands.extend(map(str, command))
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", watched)
    backup.dump(f"{dsn} password=secret-word", tmp_path / "backup", programs=PROGRAMS)
    assert commands
    assert not any("secret-word" in word for word in commands)
