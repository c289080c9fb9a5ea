"""The doors of the SuperLink by implementation: each test of this folder runs against every one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Protocol

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from flq.link import runs
from flq.link.attempts import AttemptClaim
from flq.link.control import DbControl
from flq.link.database import Database
from flq.link.fleet import DbFleet
from flq.link.grid import DbGrid
from flq.local.state import Addresses
from flq.wire.control import Control
from flq.wire.fleet import Fleet
from flq.wire.grid import Grid
from flq.wire.ids import RunId
from tests import pooler
from tests.integration import link_acts as act


class Doors(Protocol):
    """How an implementation opens its doors."""

    def fleet(self) -> Fleet: ...

    def grid(self, run_id: RunId, token: int, attempt: int) -> Grid: ...

    def control(self) -> Control: ...


class DatabaseDoors:
    """On the database, directly or through a pooler."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    def fleet(self) -> Fleet:
        return DbFleet(self._dsn)

    def grid(self, run_id: RunId, token: int, attempt: int) -> Grid:
        return DbGrid(self._dsn, run_id=run_id, token=token, attempt=attempt)

    def control(self) -> Control:
        return DbControl(self._dsn)


class House:
    """A federation whose doors are of one implementation; what has no door is done on the database."""

    def __init__(self, doors: Doors, db: Database, opened: ExitStack) -> None:
        self.db = db
        self._doors = doors
        self._opened = opened

    def fleet(self) -> Fleet:
        """A SuperNode's door; not connected yet."""
        fleet = self._doors.fleet()
        self._opened.callback(fleet.disconnect)
        return fleet

    def control(self) -> Control:
        """A person's door."""
        control = self._doors.control()
        self._opened.callback(control.close)
        return control

    def grid(self, run_id: RunId | None = None) -> tuple[Grid, AttemptClaim]:
        """The door of a ServerApp that is running: of a new run, or of the next attempt of a pending one."""
        claim = act.start_attempt(self.db, run_id)
        grid = self._doors.grid(claim.run.run_id, claim.token, claim.attempt)
        self._opened.callback(grid.close)
        with self.db.transaction() as tx:
            assert runs.begin(tx, claim.run.run_id, claim.token)
        return grid, claim


@pytest.fixture(scope="session")
def pooled(servers: Addresses) -> Iterator[str]:
    """The DSN of a PgBouncer in transaction mode before the session's server."""
    if pooler.PROGRAM is None:
        pytest.skip(pooler.MISSING)
    with pooler.pgbouncer(servers.dsn) as dsn:
        yield dsn


@pytest.fixture(params=["database", "pgbouncer"])
def house(request: pytest.FixtureRequest, dsn: str, db: Database) -> Iterator[House]:
    """A federation with doors of each implementation in turn."""
    with ExitStack() as opened:
        if request.param == "pgbouncer":
            dsn = make_conninfo(request.getfixturevalue("pooled"), dbname=conninfo_to_dict(dsn)["dbname"])
        yield House(DatabaseDoors(dsn), db, opened)
