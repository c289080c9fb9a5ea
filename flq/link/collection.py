"""Collection: objects that nothing refers to and nobody has asked for lately go, exactly those, and never under a push.

Whoever is about to refer to an object locks its row FOR KEY SHARE (`objects.hold`); the collector takes it FOR UPDATE,
skipping what is locked, and looks for references once more in a new snapshot before it deletes. It starts from pins
that have passed, so that a sweep costs as much as there is to collect, not as much as is stored.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Final, NamedTuple

from flq.link import stores
from flq.link.database import Database, Tx
from flq.link.sql import load
from flq.wire.ids import ObjectHash

SQL: Final = load("collection")

SWEEP_OBJECTS = 200
SWEEP_BYTES = 256 << 20
"""How much one sweep collects at most: a transaction of about a second."""

UPLOAD_AGE_SECONDS = 86400.0
"""An upload that was broken off can go on for so long."""

SWEEP_UPLOADS = 8
SWEEP_RUNS = 50


class Collected(NamedTuple):
    """What a sweep has freed, and how many pins it has looked at."""

    objects: int
    size: int
    looked: int


def sweep(tx: Tx, *, limit: int = SWEEP_OBJECTS, limit_bytes: int = SWEEP_BYTES) -> Collected:
    """Look at objects whose pin has passed, and delete those that nothing refers to. A step of a transaction."""
    due = [ObjectHash(bytes(name)) for (name,) in tx.execute(SQL["due_pins"], {"limit": limit}).fetchall()]
    if not due:
        return Collected(0, 0, 0)
    locked = [bytes(name) for (name,) in tx.execute(SQL["lock_unreferenced"], {"hashes": due}).fetchall()]
    rows = tx.execute(SQL["still_unreferenced"], {"hashes": locked, "limit_bytes": limit_bytes}).fetchall()
    doomed = [(ObjectHash(bytes(name)), size, directory) for name, size, directory in rows]
    _discard(tx, ((name, directory) for name, _, directory in doomed))
    names = [name for name, _, _ in doomed]
    tx.execute(SQL["collect_objects"], {"hashes": names})
    rest = sorted(set(due) - set(names))
    tx.execute(SQL["drop_pins"], {"hashes": rest})
    tx.execute(SQL["drop_dangling_pins"], {"hashes": rest})
    return Collected(len(doomed), sum(size for _, size, _ in doomed), len(due))


def collect(db: Database) -> Collected:
    """Collect until nothing is left to collect; returns what was freed."""
    total = Collected(0, 0, 0)
    while True:
        with db.transaction() as tx:
            found = sweep(tx)
        if not found.objects:
            return total
        total = Collected(*(a + b for a, b in zip(total, found, strict=True)))


def sweep_uploads(tx: Tx, *, age: float = UPLOAD_AGE_SECONDS) -> int:
    """Delete what uploads that were broken off have left; returns how many there were. A step of a transaction."""
    rows = tx.execute(SQL["old_uploads"], {"age": age, "limit": SWEEP_UPLOADS}).fetchall()
    if rows:
        names = [bytes(name) for name, _ in rows]
        gone = {bytes(name) for (name,) in tx.execute(SQL["collect_uploads"], {"hashes": names}).fetchall()}
        _discard(tx, ((ObjectHash(bytes(name)), directory) for name, directory in rows if bytes(name) in gone))
    store = stores.current(tx)
    drafts = store.discard_drafts(time.time() - age) if isinstance(store, stores.DirectoryStore) else 0
    return len(rows) + drafts


def sweep_runs(tx: Tx, *, limit: int = SWEEP_RUNS) -> int:
    """Release what completed runs have sent and received; returns how many references went."""
    run_ids = [run_id for (run_id,) in tx.execute(SQL["runs_with_payloads"], {"limit": limit}).fetchall()]
    if not run_ids:
        return 0
    row = tx.execute(SQL["release_payloads"], {"run_ids": run_ids}).fetchone()
    return int(row[0]) if row else 0


def _discard(tx: Tx, objects: Iterable[tuple[ObjectHash, str | None]]) -> None:
    """Remove the bytes of objects, from wherever they are."""
    by_place: defaultdict[str | None, list[ObjectHash]] = defaultdict(list)
    for name, directory in objects:
        by_place[directory].append(name)
    for directory, names in by_place.items():
        stores.at(directory).discard(tx, names)
