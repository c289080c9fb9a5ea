"""Alembic's environment. `flq.link.schema` hands the connection in; for `alembic` itself it is made from FLQ_DSN."""

from __future__ import annotations

from typing import Any

from alembic import context
from sqlalchemy import Connection, text

from flq.link import schema
from flq.models import SCHEMA, Base

LOCK_TIMEOUT = "3s"


def include(_object: Any, name: str | None, kind: str, *_: Any) -> bool:
    """Leave the partitions out: they are made by maintenance, not declared."""
    return not (kind == "table" and name is not None and schema.PARTITION.fullmatch(name))


def only_ours(name: str | None, kind: str, _parents: Any) -> bool:
    """Look at our schema only: an operator's own tables in the same database are none of our business."""
    return kind != "schema" or name == SCHEMA


def migrate(connection: Connection) -> None:
    """Bring the schema up, one transaction a revision, one upgrader at a time."""
    connection.execute(text("SELECT pg_advisory_lock(hashtext('flq.migrations'))"))
    connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
    connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
    connection.commit()
    try:
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            version_table_schema=SCHEMA,
            include_schemas=True,
            include_name=only_ours,
            include_object=include,
            transaction_per_migration=True,
            compare_type=True,
            compare_server_default=True,
        )
        with context.begin_transaction():
            context.run_migrations()
    finally:
        connection.rollback()
        connection.execute(text("SELECT pg_advisory_unlock(hashtext('flq.migrations'))"))
        connection.commit()


given = context.config.attributes.get("connection")
if given is not None:
    migrate(given)
else:
    with schema.connection(schema.dsn_of_environment()) as own:
        migrate(own)
