"""A migration while the federation works: nothing fails, nothing is lost, and the invariants hold."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from flq.errors import SchemaError
from flq.link import schema, verify
from flq.link.database import Database
from tests.integration import link_acts as act
from tests.integration.link_acts import Doors
from tests.waiting import eventually

PATIENCE = 10.0

REVISION = """
from alembic import op

from flq.link.migrating import lock_tables

revision = "0002"
down_revision = "0001"


def upgrade():
    lock_tables(op.get_bind(), patience={patience})
    op.execute("ALTER TABLE flq_state.task ADD COLUMN note text")
    op.execute("ALTER TABLE flq_state.result ADD COLUMN note text")
    op.execute("ALTER TABLE flq_state.run ADD COLUMN note text NOT NULL DEFAULT 'x'")
    op.execute("CREATE OR REPLACE VIEW flq.waiting AS " + {waiting!r})


def downgrade():
    lock_tables(op.get_bind())
    op.execute("ALTER TABLE flq_state.task DROP COLUMN note")
    op.execute("ALTER TABLE flq_state.result DROP COLUMN note")
    op.execute("ALTER TABLE flq_state.run DROP COLUMN note")
"""


@pytest.fixture
def doors(dsn: str, db: Database) -> Iterator[Doors]:
    found = Doors(dsn, db)
    with found.opened:
        yield found


@pytest.fixture
def newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A flq whose migrations have one more."""
    from flq.models.views import WAITING

    shutil.copytree(schema.migrations(), tmp_path / "migrations")
    revision = tmp_path / "migrations" / "versions" / "0002_note.py"
    revision.write_text(REVISION.format(waiting=WAITING, patience=PATIENCE))
    monkeypatch.setattr(schema, "migrations", lambda: tmp_path / "migrations")
    return "0002"


class Load:
    """Pushes, claims and submits, in a thread for the ServerApp and one for each SuperNode."""

    def __init__(self, doors: Doors, nodes: int = 2) -> None:
        self._stopped = threading.Event()
        self._doors = doors
        self.pushed = 0
        self.submitted = [0] * nodes
        self.failures: list[BaseException] = []
        self._fleets = [doors.fleet(f"node-{n}") for n in range(nodes)]
        self._grid, _ = doors.grid()
        self._threads = [threading.Thread(target=self._guarded, args=(self._push,))]
        self._threads += [threading.Thread(target=self._guarded, args=(self._work, n)) for n in range(nodes)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()

    def goes_on(self) -> None:
        """Wait until each thread has done its work some more times."""
        before = [self.pushed, *self.submitted]

        def further() -> bool:
            return bool(self.failures) or all(
                now >= then + 5 for now, then in zip([self.pushed, *self.submitted], before, strict=True)
            )

        eventually(further, what="progress of all threads")
        assert self.failures == []

    def _guarded(self, work, *arguments) -> None:
        try:
            while not self._stopped.is_set():
                work(*arguments)
        except BaseException as exc:
            self.failures.append(exc)
            raise

    def _push(self) -> None:
        nodes = [hosted[0].node_id for _, hosted in self._fleets]
        self._grid.push(act.push(*nodes, sequence=self.pushed))
        self.pushed += 1

    def _work(self, n: int) -> None:
        fleet, hosted = self._fleets[n]
        fleet.heartbeat()
        leases = act.claim(fleet, hosted)
        fleet.renew([lease.key for lease in leases])
        fleet.submit([act.reply(lease) for lease in leases])
        self.submitted[n] += len(leases)
        fleet.wait(0.05)


def test_a_migration_under_load(doors: Doors, db: Database, dsn: str, newer: str):
    with Load(doors) as load:
        load.goes_on()
        schema.upgrade(dsn)
        load.goes_on()
        assert schema.current(dsn) == newer
        schema.downgrade(dsn, "0001")
        load.goes_on()
    assert load.failures == []
    assert [found.broken for found in verify.run(db) if not found.holds] == []


def test_a_migration_that_meets_a_long_lock_gives_up_and_leaves_everything_as_it_was(
    doors: Doors, db: Database, dsn: str, newer: str, monkeypatch: pytest.MonkeyPatch
):
    with Load(doors) as load, db.transaction() as tx:
        tx.execute("LOCK TABLE flq_state.run IN ACCESS SHARE MODE")
        load.goes_on()
        revision = schema.migrations() / "versions" / "0002_note.py"
        revision.write_text(revision.read_text().replace(f"patience={PATIENCE}", "patience=1.0"))
        with pytest.raises(SchemaError, match="could not be locked"):
            schema.upgrade(dsn)
        load.goes_on()
    assert load.failures == []
    assert schema.current(dsn) == "0001"
    schema.upgrade(dsn)
    assert schema.current(dsn) == newer
    assert [found.broken for found in verify.run(db) if not found.holds] == []
