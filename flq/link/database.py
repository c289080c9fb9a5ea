"""Connections to PostgreSQL, and the one place where a driver's error becomes one of ours.

A pooler in transaction mode (PgBouncer) gives each transaction another server connection: nothing that lasts longer
than a transaction may be set, prepared or listened to. Whether one stands between is found out, not configured.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Self

import psycopg
from psycopg import Connection, Cursor, sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus
from psycopg.types.numeric import Int8Dumper

from flq.errors import DatabaseUnreachable
from flq.link import refusals

Row = tuple[Any, ...]
Tx = Connection[Row]
"""A connection inside a transaction. Functions of link that take one are a step of that transaction."""

LIMITS: Final = {"statement_timeout": "60s", "lock_timeout": "10s", "idle_in_transaction_session_timeout": "60s"}
"""No statement, lock or transaction of ours may hang for ever."""

PLANNING: Final = {"jit": "off", "plan_cache_mode": "force_generic_plan"}
"""Prepared statements are planned once: every hot one goes by primary key whatever its arguments are."""

BY_KEY: Final = {"enable_seqscan": "off", "enable_bitmapscan": "off"}
"""For the doors of apps and nodes: a statement planned once, while tables are small, would go on reading them whole, or
all open tasks of a node where a few in order are wanted. And a submit locks tasks as it reads them: in key order."""


def _set_local(settings: Mapping[str, str]) -> sql.Composed:
    return sql.SQL("; ").join(
        sql.SQL("SET LOCAL {} = {}").format(sql.Identifier(name), sql.Literal(value))
        for name, value in settings.items()
    )


_LIMIT: Final = _set_local({**LIMITS, "jit": "off"})
_LIMIT_BY_KEY: Final = _set_local({**LIMITS, "jit": "off", **BY_KEY})

_POOLED: Final[dict[str, bool]] = {}
"""What has been found out of each DSN: whether a transaction pooler stands between."""

CONNECT_SECONDS = 10
POOL_SIZE = 6


def connect(dsn: str, *, application: str, by_key: bool = False) -> Tx:
    """Open a connection of one's own in autocommit mode. Raises `DatabaseUnreachable`.

    With `by_key` its statements never read a whole table if there is an index.
    """
    with connecting():
        if _POOLED.get(dsn):
            connection = _connect_pooled(dsn, application, by_key=by_key)
        else:
            connection = _connect_directly(dsn, application, by_key=by_key)
    # psycopg would send a number as int2, int4 or int8, whatever it fits in: a statement for each, and a plan for each
    connection.adapters.register_dumper(int, Int8Dumper)
    return connection


@contextmanager
def connecting() -> Iterator[None]:
    """Raise `DatabaseUnreachable` for a connection that fails, and `UsageError` for a DSN that is none."""
    try:
        yield
    except psycopg.OperationalError as exc:
        raise refusals.unreachable(exc) from exc
    except psycopg.ProgrammingError as exc:
        if exc.sqlstate is None:
            raise refusals.unreadable_dsn() from None
        raise


def is_pooled(connection: Tx) -> bool:
    """Whether a transaction pooler stands between: then there is no LISTEN, and nothing outlives a transaction."""
    return isinstance(connection, PooledConnection)


@contextmanager
def translated(connection: Tx | None = None) -> Iterator[None]:
    """Raise `DatabaseUnreachable` for a lost connection or a full disk, `LinkError` for what could not be done."""
    try:
        yield
    except refusals.TRANSLATED as exc:
        raise refusals.error_of(exc, broken=connection is None or connection.broken) from exc


class PooledCursor(Cursor[Row]):
    """Runs each statement that stands outside of a transaction in one of its own, under our limits."""

    def execute(
        self, query: Any, params: Any = None, *, prepare: bool | None = None, binary: bool | None = None
    ) -> Self:
        """As in psycopg; rows are kept by the client, so the transaction need not stay open for them."""
        with _limited(self.connection):
            return super().execute(query, params, prepare=prepare, binary=binary)

    @contextmanager
    def copy(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """The same for COPY, whose transaction ends with the block."""
        with _limited(self.connection), super().copy(*args, **kwargs) as copy:
            yield copy


class PooledConnection(Connection[Row]):
    """A connection through a transaction pooler: no prepared statements, and limits set in each transaction."""

    by_key = False

    @contextmanager
    def transaction(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """As in psycopg. The outermost one begins with the limits."""
        outermost = self.info.transaction_status == TransactionStatus.IDLE
        with super().transaction(*args, **kwargs) as transaction:
            if outermost:
                _limit(self)
            yield transaction


class Database:
    """Connections to one database, opened when needed and kept for the next use. May be used from several threads.

    psycopg's own pool connects in a background thread and tries again until its time-out: a server that refuses would
    show as ten seconds of silence. Here the caller connects, and hears at once what is wrong.
    """

    def __init__(self, dsn: str, *, application: str, size: int = POOL_SIZE, by_key: bool = False) -> None:
        self.dsn = dsn
        self._by_key = by_key
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
        return connect(self.dsn, application=self._application, by_key=self._by_key)

    def close(self) -> None:
        """Close every connection that is not in use; those that are close when they are given back."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def _take(self) -> Tx:
        if self._closed:
            raise DatabaseUnreachable("the connections to PostgreSQL are closed")
        while True:
            try:
                idle = self._idle.pop()
            except IndexError:
                return self.open_connection()
            if _lives(idle):
                return idle
            idle.close()

    def _give_back(self, taken: Tx) -> None:
        if taken.closed:  # the server went away: the idle ones are as dead as this one
            while self._idle:
                self._idle.pop().close()
        elif self._closed:
            taken.close()
        else:
            self._idle.append(taken)


def _connect_directly(dsn: str, application: str, *, by_key: bool) -> Tx:
    settings = {**LIMITS, **PLANNING, **(BY_KEY if by_key else {})}
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    try:
        connection: Tx = psycopg.connect(dsn, autocommit=True, **_session(dsn, application, options=options))
    except psycopg.OperationalError as exc:
        if "unsupported startup parameter" not in str(exc):
            raise
        _POOLED[dsn] = True
        return _connect_pooled(dsn, application, by_key=by_key)
    if dsn not in _POOLED:
        # a pooler hands out process ids of its own making; asked for, the server tells the real one
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
        _POOLED[dsn] = row != (connection.info.backend_pid,)
        if _POOLED[dsn]:
            connection.close()
            return _connect_pooled(dsn, application, by_key=by_key)
    return connection


def _connect_pooled(dsn: str, application: str, *, by_key: bool) -> Tx:
    connection = PooledConnection.connect(
        dsn, autocommit=True, prepare_threshold=None, cursor_factory=PooledCursor, **_session(dsn, application)
    )
    connection.by_key = by_key
    return connection


def _session(dsn: str, application: str, **more: str) -> dict[str, Any]:
    given = conninfo_to_dict(dsn)
    wanted = {"application_name": application, "connect_timeout": CONNECT_SECONDS, **more}
    return {key: value for key, value in wanted.items() if key not in given}


@contextmanager
def _limited(connection: Connection[Any]) -> Iterator[None]:
    """A transaction with our limits around one statement, unless there is a transaction already."""
    if connection.info.transaction_status != TransactionStatus.IDLE or not connection.autocommit:
        yield
        return
    with connection.transaction():
        yield


def _limit(connection: PooledConnection) -> None:
    """One round trip, and no query yet: an isolation level may still follow."""
    connection.execute(_LIMIT_BY_KEY if connection.by_key else _LIMIT)


def _lives(idle: Tx) -> bool:
    """Whether an idle connection still has its server: to one that was closed there is something to read."""
    return not idle.closed and not select.select([idle.fileno()], [], [], 0)[0]
