"""The schema's revision: upgrade, check, compare with the models. Needs a direct connection, not a pooler's.

`python -m flq.link.schema upgrade` does the upgrade in a process of its own, so that a long-running supervisor need
not keep SQLAlchemy and Alembic in memory.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flq.errors import SchemaError, UsageError
from flq.link import refusals
from flq.link.database import CONNECT_SECONDS, connecting, translated
from flq.settings import load

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection

HEAD = "0001"
"""The revision that this flq works with. A test compares it with the newest migration."""

PARTITION = re.compile(r"(result|log_line)_p\w+")


def migrations() -> Path:
    """Where the migrations are: in the wheel beside this package, in a checkout beside `flq/`."""
    package = Path(__file__).parent.parent
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def dsn_of_environment() -> str:
    """The DSN that the environment or the configuration names. Raises `UsageError` without one."""
    dsn = load().dsn
    if dsn is None:
        raise UsageError("no database is named", hint="set FLQ_DSN")
    return dsn


@contextmanager
def connection(dsn: str) -> Iterator[Connection]:
    """A SQLAlchemy connection to `dsn`, for Alembic. Raises `DatabaseUnreachable`."""
    import psycopg
    from sqlalchemy import create_engine
    from sqlalchemy.exc import OperationalError
    from sqlalchemy.pool import NullPool

    def open_connection() -> psycopg.Connection:
        with connecting():
            return psycopg.connect(dsn, connect_timeout=CONNECT_SECONDS)

    engine = create_engine("postgresql+psycopg://", creator=open_connection, poolclass=NullPool)
    try:
        with engine.connect() as opened:
            yield opened
    except OperationalError as exc:
        if isinstance(exc.orig, psycopg.OperationalError):
            raise refusals.error_of(exc.orig, broken=exc.connection_invalidated) from exc
        raise


def config() -> Config:
    """Alembic's configuration, without a file."""
    from alembic.config import Config

    found = Config()
    found.set_main_option("script_location", str(migrations()))
    return found


def upgrade(dsn: str, revision: str = "head") -> None:
    """Bring the schema to `revision`. Several upgraders at once are one after another.

    Raises `DatabaseUnreachable`, or `SchemaError` if the database is at a revision that this flq does not know.
    """
    _command("upgrade", dsn, revision)


def downgrade(dsn: str, revision: str) -> None:
    """Bring the schema back to `revision`, `base` being before the first."""
    _command("downgrade", dsn, revision)


def drift(dsn: str) -> list[Any]:
    """The differences between the models and the database, as Alembic's operations; empty if there are none."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from flq.models import SCHEMA, Base

    with connection(dsn) as opened:
        context = MigrationContext.configure(
            opened,
            opts={
                "include_name": lambda name, kind, _: kind != "schema" or name == SCHEMA,
                "include_object": lambda _, name, kind, *__: not (kind == "table" and PARTITION.fullmatch(name or "")),
                "include_schemas": True,
                "compare_type": True,
                "compare_server_default": True,
                "version_table_schema": SCHEMA,
            },
        )
        return list(compare_metadata(context, Base.metadata))


def current(dsn: str) -> str | None:
    """The database's revision, or None if flq has never been there. Raises `DatabaseUnreachable`."""
    import psycopg

    with connecting(), psycopg.connect(dsn, connect_timeout=CONNECT_SECONDS) as opened, translated(opened):
        found = opened.execute("SELECT to_regclass('flq_state.alembic_version')").fetchone()
        if found is None or found[0] is None:
            return None
        row = opened.execute("SELECT version_num FROM flq_state.alembic_version").fetchone()
        return str(row[0]) if row else None


def head() -> str:
    """The revision that this flq works with."""
    return HEAD


def check(dsn: str) -> None:
    """Refuse a database at another revision. Raises `SchemaError` or `DatabaseUnreachable`."""
    found = current(dsn)
    if found == HEAD:
        return
    raise _mismatch(found)


def _mismatch(found: str | None) -> SchemaError:
    at = f"at schema revision {found}" if found else "without flq's schema"
    hint = "`flq db upgrade` brings it up" if found is None or found < HEAD else "upgrade flq on this machine"
    return SchemaError(f"the database is {at}; this flq needs {HEAD}", hint=hint)


def _command(name: str, dsn: str, revision: str) -> None:
    from alembic import command
    from alembic.util.exc import CommandError

    with connection(dsn) as opened:
        settings = config()
        settings.attributes["connection"] = opened
        try:
            getattr(command, name)(settings, revision)
        except CommandError as exc:  # it does not know where the database is
            raise _mismatch(current(dsn)) from exc


def main(arguments: list[str]) -> int:
    """`upgrade`: the only thing that a supervisor asks for."""
    if arguments != ["upgrade"]:
        raise UsageError("usage: python -m flq.link.schema upgrade")
    upgrade(dsn_of_environment())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
