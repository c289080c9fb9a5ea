"""`python -m flq.local.database`: creates flq's database and brings its schema up.

A short-lived process, so that the supervisor need not keep a database driver in memory. It may be started before
Postgres is: it waits for it. With `--new` it knows that there is work, and loads what it needs meanwhile.
"""

from __future__ import annotations

import importlib
import sys
import time

from flq.errors import DatabaseUnreachable, FlqError
from flq.link import schema
from flq.local.layout import DATABASE

PATIENCE = 300.0

_PAUSE = 0.02


def prepare(dsn: str, *, patience: float = PATIENCE) -> None:
    """Create the database if it is not there, and its schema. Raises `DatabaseUnreachable` or `SchemaError`."""
    _create(dsn, patience)
    found = schema.current(dsn)
    if found is None or found < schema.head():
        schema.upgrade(dsn)
    schema.check(dsn)


def _create(dsn: str, patience: float) -> None:
    import psycopg
    from psycopg import sql

    give_up = time.monotonic() + patience
    while True:
        try:
            with psycopg.connect(dsn, dbname="postgres", connect_timeout=5, autocommit=True) as connection:
                if not connection.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE]).rowcount:
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
                return
        except psycopg.OperationalError as exc:
            if time.monotonic() > give_up:
                raise DatabaseUnreachable(f"PostgreSQL did not come up: {exc}".rstrip()) from exc
        time.sleep(_PAUSE)


def main(arguments: list[str]) -> int:
    """Prepare the database of `FLQ_DSN`."""
    if "--new" in arguments:
        for module in ("psycopg", "alembic.command", "sqlalchemy.dialects.postgresql.psycopg", "flq.models"):
            importlib.import_module(module)
    try:
        prepare(schema.dsn_of_environment())
    except FlqError as exc:
        print(f"{exc.message}; {exc.hint}" if exc.hint else exc.message, file=sys.stderr)  # noqa: T201 - a program
        return exc.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
