"""Overlaps made on purpose: a step whose transaction stays open, and a call beside it that is seen to wait."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from psycopg.conninfo import make_conninfo

from flq.link.database import Database, Tx
from tests.waiting import eventually

NUMBERS = itertools.count()

GATE = 1
"""The advisory lock at which a clock that is held stands."""

HELD_CLOCK = f"""
CREATE SCHEMA IF NOT EXISTS held;
CREATE OR REPLACE FUNCTION held.clock_timestamp() RETURNS timestamptz VOLATILE LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared({GATE});
    RETURN pg_catalog.clock_timestamp();
END
$$
"""


class OpenTransaction:
    """Stands in for a `Database`: every call on it is a step of one transaction that stays open."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    @contextmanager
    def connection(self) -> Iterator[Tx]:
        yield self._tx

    transaction = connection


class Call:
    """A call on a connection of its own, in a thread of its own."""

    def __init__(self, dsn: str, watch: Database, work: Callable[[Database], Any], *, by_key: bool = False) -> None:
        self.name = f"racer {next(NUMBERS)}"
        self.db = Database(dsn, application=self.name, by_key=by_key)
        self.value: Any = None
        self.error: Exception | None = None
        self._watch = watch
        self._thread = threading.Thread(target=self._run, args=(work,), name=self.name)
        self._thread.start()

    def waits(self) -> bool:
        """Whether its connection waits for a lock."""
        with self._watch.connection() as connection:
            return bool(
                connection.execute(
                    "SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'",
                    [self.name],
                ).fetchone()
            )

    def result(self) -> Any:
        """What the call returned; raises what it raised."""
        self._thread.join(30)
        assert not self._thread.is_alive(), f"{self.name} did not end"
        self.db.close()
        if self.error is not None:
            raise self.error
        return self.value

    def _run(self, work: Callable[[Database], Any]) -> None:
        try:
            self.value = work(self.db)
        except Exception as exc:  # noqa: BLE001 - raised again by `result`
            self.error = exc


class Races:
    """Makes calls overlap."""

    def __init__(self, dsn: str, db: Database) -> None:
        self._dsn = dsn
        self._db = db
        self._calls: list[Call] = []

    @contextmanager
    def holding(self, work: Callable[[Database], Any]) -> Iterator[Any]:
        """Do `work` in a transaction that is committed at the end of the block."""
        with self._db.transaction() as tx:
            yield work(cast("Database", OpenTransaction(tx)))

    @contextmanager
    def forgetting(self, work: Callable[[Database], Any]) -> Iterator[Any]:
        """Do `work` in a transaction that is rolled back at the end of the block."""
        with self._db.connection() as connection, connection.transaction(force_rollback=True):
            yield work(cast("Database", OpenTransaction(connection)))

    @contextmanager
    def having_looked(self, work: Callable[[Database], Any]) -> Iterator[Call]:
        """Begin `work` on another connection, and hold it where its first statement reads the clock.

        That statement sees what was there before the block, and goes on at the end of it.
        """
        with self._db.connection() as connection:
            connection.execute(HELD_CLOCK)
            connection.execute("SELECT pg_advisory_lock(%s::bigint)", [GATE])
            call = Call(make_conninfo(self._dsn, options="-c search_path=held,pg_catalog"), self._db, work)
            self._calls.append(call)
            try:
                eventually(call.waits, what=f"{call.name} to read the clock")
                yield call
            finally:
                connection.execute("SELECT pg_advisory_unlock(%s::bigint)", [GATE])

    def beside(self, work: Callable[[Database], Any], *, by_key: bool = False) -> Call:
        """Begin `work` on another connection; with `by_key` on one as nodes and apps have it."""
        call = Call(self._dsn, self._db, work, by_key=by_key)
        self._calls.append(call)
        return call

    def blocked(self, work: Callable[[Database], Any], *, by_key: bool = False) -> Call:
        """The same, and see it wait for a lock."""
        call = self.beside(work, by_key=by_key)
        eventually(call.waits, what=f"{call.name} to wait for a lock")
        return call

    def close(self) -> None:
        """Every call is over."""
        for call in self._calls:
            call._thread.join(30)
            call.db.close()
