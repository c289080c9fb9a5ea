"""Settings on which every process of a federation has to agree: rows of the database, not of anyone's file."""

from __future__ import annotations

from typing import Final

from psycopg.types.json import Jsonb

from flq.link.database import Tx
from flq.link.sql import load

SQL: Final = load("shared")

Value = str | int | float | bool


def get(tx: Tx, name: str) -> Value | None:
    """A setting, or None if it is not set."""
    row = tx.execute(SQL["read_setting"], {"name": name}).fetchone()
    if row is None:
        return None
    value: Value = row[0]
    return value


def put(tx: Tx, name: str, value: Value | None) -> None:
    """Set a setting; None takes it away."""
    if value is None:
        tx.execute(SQL["delete_setting"], {"name": name})
    else:
        tx.execute(SQL["write_setting"], {"name": name, "value": Jsonb(value)})
