"""Connections to PostgreSQL, and the one place where a driver's error becomes one of ours."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import Connection, errors
from psycopg.conninfo import conninfo_to_dict

from flq.errors import DatabaseUnreachable, LinkError

Tx = Connection[tuple[Any, ...]]
"""A connection inside a transaction. Functions of link that take one are a step of that transaction."""

SESSION = "-c statement_timeout=60s -c lock_timeout=10s -c idle_in_transaction_session_timeout=60s"
"""No statement, lock or transaction of ours may hang for ever."""

CONNECT_SECONDS = 10
POOL_SIZE = 6

_LOST = (
    psycopg.InterfaceError,
    errors.AdminShutdown,
    errors.CrashShutdown,
    errors.CannotConnectNow,
    errors.ConnectionException,
    errors.TooManyConnections,
    errors.IdleInTransactionSessionTimeout,
)


def connect(dsn: str, *, application: str) -> Tx:
    """Open a connection of one's own in autocommit mode. Raises `DatabaseUnreachable`."""
    try:
        return psycopg.connect(dsn, autocommit=True, **_session(dsn, application))
    except psycopg.OperationalError as exc:
        raise _unreachable(exc) from exc


@contextmanager
def translated(connection: Tx | None = None) -> Iterator[None]:
    """Raise `DatabaseUnreachable` for a lost connection, and `LinkError` for what PostgreSQL could not do."""
    try:
        yield
    except _LOST as exc:
        raise _unreachable(exc) from exc
    except psycopg.OperationalError as exc:
        if connection is None or connection.broken or exc.sqlstate is None:
            raise _unreachable(exc) from exc
        raise LinkError(f"PostgreSQL could not do it: {exc.diag.message_primary or exc}") from exc


class Database:
    """Connections to one database, opened when needed and kept for the next use. May be used from several threads.

    psycopg's own pool connects in a background thread and tries again until its time-out: a server that refuses would
    show as ten seconds of silence. Here the caller connects, and hears at once what is wrong.
    """

    def __init__(self, dsn: str, *, application: str, size: int = POOL_SIZE) -> None:
        self.dsn = dsn
        self._application = application
        self._idle: list[Tx] = []
        self._room = threading.BoundedSemaphore(size)
        self._closed = False

    @contextmanager
    def connection(self) -> Iterator[Tx]:
        """A connection in autocommit mode: for work that is one statement. Raises `DatabaseUnreachable`."""
        with self._room:
            taken = self._take()
            try:
                with translated(taken):
                    yield taken
            finally:
                self._give_back(taken)

    @contextmanager
    def transaction(self) -> Iterator[Tx]:
        """A connection in a transaction, committed at the end, rolled back by an exception."""
        with self.connection() as taken, taken.transaction():
            yield taken

    def open_connection(self) -> Tx:
        """A connection outside of the pool: for heartbeats and for listening."""
        return connect(self.dsn, application=self._application)

    def close(self) -> None:
        """Close every connection that is not in use; those that are close when they are given back."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def _take(self) -> Tx:
        if self._closed:
            raise DatabaseUnreachable("the connections to PostgreSQL are closed")
        try:
            return self._idle.pop()
        except IndexError:
            return self.open_connection()

    def _give_back(self, taken: Tx) -> None:
        if taken.closed:  # the server went away: the idle ones are as dead as this one
            while self._idle:
                self._idle.pop().close()
        elif self._closed:
            taken.close()
        else:
            self._idle.append(taken)


def _session(dsn: str, application: str) -> dict[str, Any]:
    given = conninfo_to_dict(dsn)
    wanted = {"application_name": application, "connect_timeout": CONNECT_SECONDS, "options": SESSION}
    return {key: value for key, value in wanted.items() if key not in given}


def _unreachable(exc: psycopg.Error) -> DatabaseUnreachable:
    first = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
    return DatabaseUnreachable(
        f"PostgreSQL cannot be reached: {first}",
        hint="`flq status` shows the embedded federation; FLQ_DSN names another one",
    )
