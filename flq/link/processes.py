"""Process instances: who lives."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Final

from psycopg.rows import kwargs_row

from flq.link.database import Database, Tx
from flq.link.sql import load
from flq.wire.runs import ProcessSpec, SuperExecRow

SQL: Final = load("processes")

ALIVE_SECONDS = 10.0
"""How long a process counts as alive after a heartbeat."""

ALIVE: Final = timedelta(seconds=ALIVE_SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumption:
    """Whether a SuperExec takes jobs from the broker, as its housekeeping jobs have shown.

    `taken` says that it has just taken one, `missed` how many in a row it has not taken, and `restarts` how often it
    has connected to the broker anew for that.
    """

    taken: bool
    missed: int
    restarts: int


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


def note_consumption(db: Database, process_id: str, consumption: Consumption) -> None:
    """Write down how a SuperExec consumes."""
    with db.connection() as connection:
        values = {"process_id": process_id, **asdict(consumption)}
        connection.execute(SQL["note_consumption"], values, prepare=True)


def retire(db: Database, process_id: str) -> None:
    """Say that a process has ended."""
    with db.connection() as connection:
        connection.execute(SQL["retire_process"], {"process_id": process_id})


def superexecs(db: Database) -> list[SuperExecRow]:
    """Every SuperExec that the federation knows, the oldest first."""
    with db.connection() as connection, connection.cursor(row_factory=kwargs_row(SuperExecRow)) as cursor:
        return cursor.execute(SQL["superexecs"]).fetchall()
