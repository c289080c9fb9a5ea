"""Quotas: how many open tasks a run may have, and how many bytes of objects it may store.

A run has limits of its own, or those of the federation (settings `max_open_tasks` and `max_bytes`), or none, which
costs one look at its row.
"""

from __future__ import annotations

from typing import Final

from flq.errors import QuotaExceeded
from flq.link.database import Tx
from flq.link.sql import load
from flq.wire.ids import RunId

SQL: Final = load("quotas")

MAX_OPEN_TASKS = "max_open_tasks"
MAX_BYTES = "max_bytes"


def check(tx: Tx, run_id: RunId, *, tasks: int = 0, objects: int = 0) -> None:
    """Refuse a write that has added `tasks` open tasks or `objects` references, if the run is above a limit now.

    A step of the transaction that writes, behind the write: a repeated push, which adds nothing, is never refused, and
    the exception undoes the others. Raises `QuotaExceeded`.
    """
    row = tx.execute(SQL["quotas"], {"run_id": run_id}).fetchone()
    max_open, max_bytes = row or (None, None)
    if max_open is not None and tasks:
        _check_tasks(tx, run_id, tasks, max_open)
    if max_bytes is not None and objects:
        _check_bytes(tx, run_id, max_bytes)


def limit(tx: Tx, run_id: RunId, *, max_open_tasks: int | None, max_bytes: int | None) -> None:
    """Set the limits of one run; None for those of the federation."""
    tx.execute(SQL["set_quotas"], {"run_id": run_id, "max_open_tasks": max_open_tasks, "max_bytes": max_bytes})


def _check_tasks(tx: Tx, run_id: RunId, added: int, most: int) -> None:
    row = tx.execute(SQL["open_tasks"], {"run_id": run_id}).fetchone()
    now = row[0] if row else 0
    if now <= most:
        return
    if added > most:
        raise QuotaExceeded(
            f"a push of {added} tasks is more than the {most} open tasks that the run may have",
            passes=False,
            hint="push to fewer nodes at once, or raise the run's max_open_tasks",
        )
    raise QuotaExceeded(
        f"the run has {now - added} open tasks; {added} more are above its limit of {most}",
        passes=True,
        hint="wait for replies before pushing more",
    )


def _check_bytes(tx: Tx, run_id: RunId, most: int) -> None:
    row = tx.execute(SQL["stored_bytes"], {"run_id": run_id}).fetchone()
    now = row[0] if row else 0
    if now > most:
        raise QuotaExceeded(
            f"the run would store {now} bytes, which is above its limit of {most}",
            passes=False,
            hint="keep fewer checkpoints or artifacts, or raise the run's max_bytes",
        )
