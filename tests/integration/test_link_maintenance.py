"""Sweeps: bounded, one at a time, recorded; one that fails does not keep the others from running."""

from __future__ import annotations

import psycopg
import pytest

from flq.errors import DatabaseUnreachable, LinkError
from flq.link import attempts, maintenance, objects
from flq.link.control import DbControl
from flq.link.database import Database
from flq.link.maintenance import Sweep
from tests.integration import link_acts as act
from tests.integration.link_acts import Doors


def recorded(db: Database, name: str) -> list[tuple[int, str | None]]:
    with db.connection() as connection:
        rows = connection.execute(
            "SELECT done, error FROM flq_state.maintenance_run WHERE name = %s ORDER BY maintenance_id", [name]
        )
        return rows.fetchall()


def test_every_sweep_runs_and_says_so_once(dsn: str, db: Database):
    for _ in range(3):
        maintenance.sweep(db)
    names = {found.name for found in maintenance.SWEEPS} | set(maintenance.RUN_SWEEPS)
    control = DbControl(dsn)
    rows = control.query("select sweep, done, error, duration is not null, at is not null from maintenance").rows
    control.close()
    assert sorted(rows) == [(name, 0, None, True, True) for name in sorted(names)]


def test_what_was_done_is_recorded(doors: Doors, db: Database):
    (node,) = doors.fleet("a")[1]
    grid, _ = doors.grid()
    grid.push(act.push(node.node_id, ttl=0.001))
    maintenance.sweep(db)
    assert recorded(db, "overdue") == [(1, None)]
    maintenance.sweep(db)
    assert recorded(db, "overdue") == [(1, None), (0, None)]


def test_a_sweep_that_fails_is_recorded_and_the_others_run(db: Database, monkeypatch: pytest.MonkeyPatch):
    def fail(tx):
        tx.execute("SELECT 1/0")
        return 1

    monkeypatch.setattr(maintenance, "SWEEPS", (Sweep("broken", fail), *maintenance.SWEEPS))
    maintenance.sweep(db)
    ((done, error),) = recorded(db, "broken")
    assert (done, error) == (0, "division by zero")
    assert recorded(db, "partitions") == [(0, None)]


def test_a_lock_that_others_hold_ends_a_sweep_and_not_the_sweeper(db: Database, dsn: str):
    with psycopg.connect(dsn) as other:
        other.execute("LOCK TABLE flq_state.object_pin IN ACCESS EXCLUSIVE MODE")
        objects = next(found for found in maintenance.SWEEPS if found.name == "objects")
        assert maintenance.run(db, objects) is None
    ((_, error),) = recorded(db, "objects")
    assert "lock timeout" in (error or "")
    assert maintenance.run(db, objects) == 0


def test_one_sweeper_at_a_time(db: Database):
    found = maintenance.SWEEPS[0]
    with db.transaction() as other:
        assert maintenance._locked(other, found.name)
        assert maintenance.run(db, found) is None
    assert maintenance.run(db, found) == 0


def test_a_sweep_waits_for_its_time_unless_there_was_something(db: Database, monkeypatch: pytest.MonkeyPatch):
    left = [2, 0, 0]
    rare = Sweep("rare", lambda _: left.pop(0), every=3600)
    monkeypatch.setattr(maintenance, "SWEEPS", (rare,))
    maintenance.sweep(db)
    maintenance.sweep(db)
    maintenance.sweep(db)
    assert left == [0]


def test_the_record_is_bounded(db: Database, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(maintenance, "KEEP_RUNS", 5)
    eager = Sweep("eager", lambda _: 1)
    for _ in range(12):
        assert maintenance.run(db, eager) == 1
    assert len(recorded(db, "eager")) == 5


def test_process_instances_that_are_long_gone_are_forgotten(doors: Doors, db: Database):
    doors.fleet("a")
    doors.grid()
    with db.connection() as connection:
        connection.execute(
            "INSERT INTO flq_state.process (process_id, kind, host, pid, version, slots, started_at)"
            " VALUES (gen_random_uuid(), 'supernode', 'x', 1, '0', 1, now() - interval '9 days')"
        )
        connection.execute("UPDATE flq_state.process SET alive_until = now() - interval '8 days', started_at = 'epoch'")
    sweep = next(found for found in maintenance.SWEEPS if found.name == "processes")
    assert maintenance.run(db, sweep) == 1


def test_attempts_of_superexecs_that_are_gone_are_released_and_that_is_recorded(doors: Doors, db: Database):
    doors.grid()
    with db.connection() as connection:
        connection.execute("UPDATE flq_state.run_attempt SET lease_until = clock_timestamp() - interval '1 s'")
    maintenance.sweep(db)
    assert recorded(db, "attempts") == [(1, None)]


def test_attempts_that_cannot_be_released_are_recorded(db: Database, monkeypatch: pytest.MonkeyPatch):
    def fail(_db: Database) -> int:
        raise LinkError("it could not be done")

    monkeypatch.setattr(attempts, "release_abandoned", fail)
    maintenance.sweep(db)
    assert recorded(db, "attempts") == [(0, "it could not be done")]


def test_a_lost_database_is_not_recorded_but_told(dsn: str):
    gone = Database(dsn, application="flq test")
    gone.close()
    with pytest.raises(DatabaseUnreachable):
        maintenance.sweep(gone)
    with pytest.raises(DatabaseUnreachable):
        maintenance.run(gone, maintenance.SWEEPS[0])


def test_objects_are_collected_by_the_sweep(db: Database):
    data = b"x" * 100
    objects.put(db, act.object_of(data), memoryview(data))
    with db.connection() as connection:
        connection.execute("UPDATE flq_state.object_pin SET pinned_until = '-infinity'")
    maintenance.sweep(db)
    assert recorded(db, "objects") == [(1, None)]
