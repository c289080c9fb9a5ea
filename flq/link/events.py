"""The append-only history of runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from psycopg.types.json import Jsonb

from flq.link.arrays import bigints
from flq.link.database import Database, Tx
from flq.link.sql import load
from flq.wire.ids import NodeId, RunId
from flq.wire.runs import EventRow

SQL: Final = load("events")


def record(
    tx: Tx,
    run_id: RunId,
    event: str,
    *,
    actor: str,
    reason: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Append to a run's history, in the transaction that makes it true."""
    tx.execute(
        SQL["record_event"],
        {"run_id": run_id, "event": event, "actor": actor, "reason": reason, "details": Jsonb(dict(details or {}))},
    )


def confirm_stopped(db: Database, pairs: Collection[tuple[RunId, NodeId]], *, process_id: str) -> None:
    """Note of runs that were stopped that nothing of them works for these nodes any more, once for each of them."""
    values = {
        "run_ids": bigints([run_id for run_id, _ in pairs]),
        "node_ids": bigints([node_id for _, node_id in pairs]),
        "process_id": process_id,
    }
    with db.connection() as connection:
        connection.execute(SQL["confirm_stopped"], values)


def listing(db: Database, run_id: RunId) -> list[EventRow]:
    """The history of a run, oldest first."""
    with db.connection() as connection:
        rows = connection.execute(SQL["list_events"], {"run_id": run_id}).fetchall()
    return [EventRow(at=at, event=event, actor=actor, reason=reason) for at, event, actor, reason in rows]
