"""`flq sql`: read-only queries on the views for people, as role `flq_reader`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import psycopg
from psycopg import RawCursor

from flq.errors import QueryError
from flq.link.database import Database
from flq.link.sql import load
from flq.wire.runs import Table

SQL: Final = load("inspect")

MAX_ROWS = 100_000


def query(db: Database, statement: str, parameters: Sequence[object] = ()) -> Table:
    """Run one read-only statement on schema `flq`. Raises `QueryError` with what PostgreSQL says of it."""
    # prepared, so that it is one statement: what it may do cannot be undone by a second one behind a semicolon
    with db.connection() as connection, connection.transaction(force_rollback=True), RawCursor(connection) as cursor:
        for name in ("read_only", "reader_settings", "as_reader"):
            connection.execute(SQL[name])
        try:
            cursor.execute(statement, parameters, prepare=True)
            if cursor.description is None:
                raise QueryError(
                    "the statement returns no rows", hint="flq sql takes a SELECT on the views of schema flq"
                )
            columns = tuple(column.name for column in cursor.description)
            rows = cursor.fetchmany(MAX_ROWS)
        except psycopg.Error as exc:
            raise _refused(exc) from exc
    return Table(columns, tuple(tuple(_plain(value) for value in row) for row in rows))


def _refused(exc: psycopg.Error) -> QueryError:
    said = exc.diag.message_primary or str(exc)
    hint = exc.diag.message_hint or "`flq sql --views` lists the views and their columns"
    return QueryError(f"PostgreSQL refused the query: {said}", hint=hint)


def _plain(value: Any) -> Any:
    return bytes(value).hex() if isinstance(value, (bytes, memoryview)) else value
