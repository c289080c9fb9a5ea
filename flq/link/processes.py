"""Process instances: who lives."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from typing import Final

from flq.link.database import Database, Tx
from flq.link.sql import load
from flq.wire.runs import ProcessSpec

SQL: Final = load("processes")

ALIVE_SECONDS = 10.0
"""How long a process counts as alive after a heartbeat."""

ALIVE: Final = timedelta(seconds=ALIVE_SECONDS)


def register(db: Database, spec: ProcessSpec) -> None:
    """Introduce a process instance. A repeated call changes nothing."""
    with db.connection() as connection:
        register_in(connection, spec)


def register_in(tx: Tx, spec: ProcessSpec) -> None:
    """The same, as a step of a transaction."""
    tx.execute(SQL["register_process"], {**asdict(spec), "alive": ALIVE_SECONDS})


def beat(db: Database, process_id: str) -> bool:
    """Say that a process lives; false if nobody knows it."""
    with db.connection() as connection:
        found = connection.execute(SQL["beat_process"], {"process_id": process_id, "alive": ALIVE_SECONDS})
        return found.rowcount == 1


def retire(db: Database, process_id: str) -> None:
    """Say that a process has ended."""
    with db.connection() as connection:
        connection.execute(SQL["retire_process"], {"process_id": process_id})
