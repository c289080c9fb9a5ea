"""Sweeps: what must happen although nobody asks for it. Each is a bounded transaction of one process at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from flq import log
from flq.link import attempts, tasks
from flq.link.database import Database, Tx
from flq.link.sql import load

SQL: Final = load("maintenance")

logger = log.get(__name__)

EVERY_SECONDS = 1.0
PARTITIONS_EVERY_SECONDS = 600.0


def sweep(db: Database) -> None:
    """End overdue and exhausted tasks, and release the attempts of SuperExecs that are gone."""
    _alone(db, "overdue", tasks.expire_overdue)
    _alone(db, "exhausted", tasks.end_exhausted)
    released = attempts.release_abandoned(db)
    if released:
        logger.warning("released %d attempts whose SuperExec is gone", released)


def make_partitions(db: Database) -> list[str]:
    """Make the partitions that will soon be written to; returns the names of the new ones."""
    with db.transaction() as tx:
        if not _locked(tx, "partitions"):
            return []
        return [name for (name,) in tx.execute(SQL["make_partitions"])]


def _alone(db: Database, name: str, step: Callable[[Tx], int]) -> None:
    with db.transaction() as tx:
        if _locked(tx, name):
            ended = step(tx)
            if ended:
                logger.info("ended %d %s tasks", ended, name)


def _locked(tx: Tx, name: str) -> bool:
    row = tx.execute(SQL["try_lock"], {"sweep": name}).fetchone()
    return bool(row and row[0])
