"""Sweeps: what must happen although nobody asks for it.

Each is a bounded transaction of one process at a time, with time-outs of its own; one that fails is recorded and does
not keep the others from running. View `flq.maintenance` shows what they did.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import psycopg

from flq import log
from flq.errors import DatabaseUnreachable, LinkError
from flq.failpoints import reach
from flq.link import attempts, collection, tasks
from flq.link.database import Database, Tx
from flq.link.sql import load

SQL: Final = load("maintenance")

logger = log.get(__name__)

EVERY_SECONDS = 1.0
PARTITIONS_EVERY_SECONDS = 600.0

IDLE_EVERY_SECONDS = 10.0
"""A sweep that finds nothing to do is recorded so often at most."""

KEEP_RUNS = 100
"""How many runs of a sweep that did something stay on record."""

SWEEP_PROCESSES = 100


@dataclass(frozen=True, slots=True)
class Sweep:
    """Something to do every so many seconds, and again at once if there was something; `step` says how much it did."""

    name: str
    step: Callable[[Tx], int]
    every: float = 0.0


def _released(tx: Tx) -> int:
    return collection.sweep_runs(tx)


def _collected(tx: Tx) -> int:
    found = collection.sweep(tx)
    if found.objects:
        logger.info("collected %d objects of %d bytes", found.objects, found.size)
    return found.objects


def _partitions(tx: Tx) -> int:
    return len(tx.execute(SQL["make_partitions"]).fetchall())


def _processes(tx: Tx) -> int:
    return tx.execute(SQL["forget_processes"], {"limit": SWEEP_PROCESSES}).rowcount


SWEEPS: Final = (
    Sweep("overdue", tasks.expire_overdue),
    Sweep("exhausted", tasks.ExhaustedSweep()),
    Sweep("partitions", _partitions, every=PARTITIONS_EVERY_SECONDS),
    Sweep("payloads", _released, every=60.0),
    Sweep("objects", _collected, every=10.0),
    Sweep("uploads", collection.sweep_uploads, every=600.0),
    Sweep("processes", _processes, every=3600.0),
)
"""Tasks past their deadline or their last attempt; partitions; payloads of completed runs; objects, uploads and process
instances that nobody needs any more."""

RUN_SWEEPS: Final = ("attempts", "wall_time")
"""The attempts of SuperExecs that are gone, and then runs past their wall-time limit. Not one transaction each: every
run is locked by itself."""


def sweep(db: Database) -> None:
    """Run the sweeps that are due. Raises `DatabaseUnreachable`; what else goes wrong is recorded and logged."""
    with db.connection() as connection:
        last = {name: (age, busy) for name, age, busy in connection.execute(SQL["last_runs"]).fetchall()}
    for found in SWEEPS:
        age, busy = last.get(found.name, (found.every, False))
        if busy or age >= found.every:
            run(db, found)
    for name, step in zip(RUN_SWEEPS, (attempts.release_abandoned, attempts.end_overlong), strict=True):
        _sweep_runs(db, name, step)


def run(db: Database, found: Sweep) -> int | None:
    """Run one sweep, whether it is due or not; None if another process is at it, or if it failed."""
    started = time.monotonic()
    try:
        with db.transaction() as tx:
            if not _locked(tx, found.name):
                return None
            tx.execute(SQL["sweep_timeouts"])
            done = found.step(tx)
            reach("superlink.mid-sweep")
            _record(tx, found, time.monotonic() - started, done)
    except DatabaseUnreachable:
        raise
    except (LinkError, psycopg.Error) as exc:
        _record_failure(db, found.name, time.monotonic() - started, exc)
        return None
    if done:
        logger.info("sweep %s: %d", found.name, done)
    return done


def make_partitions(db: Database) -> list[str]:
    """Make the partitions that will soon be written to; returns the names of the new ones."""
    with db.transaction() as tx:
        if not _locked(tx, "partitions"):
            return []
        return [name for (name,) in tx.execute(SQL["make_partitions"])]


def _sweep_runs(db: Database, name: str, step: Callable[[Database], int]) -> None:
    started = time.monotonic()
    try:
        done = step(db)
    except DatabaseUnreachable:
        raise
    except (LinkError, psycopg.Error) as exc:
        _record_failure(db, name, time.monotonic() - started, exc)
        return
    if done:
        logger.warning("sweep %s: %d", name, done)
    with db.transaction() as tx:
        _record(tx, Sweep(name, lambda _: 0), time.monotonic() - started, done)


def _record(tx: Tx, found: Sweep, seconds: float, done: int) -> None:
    if done:
        values = {"name": found.name, "seconds": seconds, "done": done, "error": None, "keep": KEEP_RUNS}
        tx.execute(SQL["record_sweep"], values)
    else:
        every = min(found.every / 2, IDLE_EVERY_SECONDS) if found.every else IDLE_EVERY_SECONDS
        tx.execute(SQL["record_idle"], {"name": found.name, "seconds": seconds, "every": every})


def _record_failure(db: Database, name: str, seconds: float, exc: Exception) -> None:
    logger.warning("sweep %s failed: %s", name, exc)
    values = {"name": name, "seconds": seconds, "done": 0, "error": str(exc), "keep": KEEP_RUNS}
    with db.connection() as connection:
        connection.execute(SQL["record_sweep"], values)


def _locked(tx: Tx, name: str) -> bool:
    row = tx.execute(SQL["try_lock"], {"sweep": name}).fetchone()
    return bool(row and row[0])
