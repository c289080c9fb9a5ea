"""What a migration of a federation at work begins with: all of its locks, or none."""

from __future__ import annotations

import time
from random import Random
from typing import TYPE_CHECKING

from flq.errors import SchemaError

_JITTER = Random()  # noqa: S311 - spreads the load. The global generator is the app's: its draws must not shift

if TYPE_CHECKING:
    from sqlalchemy import Connection

TRY_MILLISECONDS = 700
"""How long one try waits: less than `deadlock_timeout`, so that nobody who waits for our locks is ended by it."""

PATIENCE_SECONDS = 60.0

_TABLES = """
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'flq_state' AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relname <> 'alembic_version'
ORDER BY c.relname
"""


def lock_tables(bind: Connection, *, patience: float = PATIENCE_SECONDS) -> None:
    """Lock every table of flq until this migration's transaction ends. Called first in `upgrade` and `downgrade`.

    The statements of flq lock several tables, each in an order of its own, so a migration that locks one after the
    other runs into deadlocks, of which the federation's work may be the victim. This takes all locks in tries of less
    than a second, between which the others go on. Raises `SchemaError` if none succeeds within `patience` seconds.
    """
    from sqlalchemy.exc import OperationalError

    tables = ", ".join(bind.exec_driver_sql(_TABLES).scalars())
    give_up = time.monotonic() + patience
    while True:
        try:
            with bind.begin_nested():
                bind.exec_driver_sql(f"SET LOCAL statement_timeout = {TRY_MILLISECONDS}")
                bind.exec_driver_sql(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE")
                bind.exec_driver_sql("SET LOCAL statement_timeout = 0")
        except OperationalError as exc:
            if bind.invalidated or bind.closed:
                raise
            if time.monotonic() > give_up:
                raise SchemaError(
                    f"the tables could not be locked within {patience:.0f} s: {exc.orig}",
                    hint="a long transaction is open: pg_stat_activity shows it; nothing was changed",
                ) from exc
            time.sleep(_JITTER.uniform(0.2, 0.6))
        else:
            return
