"""Objects: content-addressed payloads. `stores` keeps their bytes; here they are looked up, held, written and verified.

An object's row is written last, so whoever sees it sees all of it. Uploads commit every 64 MiB, and an interrupted one
goes on where it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from typing import Final

from flq.errors import LinkError, ObjectCorrupt, ObjectsMissing, ObjectUnknown
from flq.link import stores
from flq.link.database import Database, Tx
from flq.link.sql import load
from flq.wire.ids import ObjectHash

SQL: Final = load("objects")

TRIES = 5
"""How often an upload looks again, when others store or collect the same object at the same time."""


def missing(db: Database, hashes: Iterable[ObjectHash]) -> frozenset[ObjectHash]:
    """Those of `hashes` that are not stored; the others cannot be collected within the next hour."""
    asked = frozenset(hashes)
    if not asked:
        return asked
    with db.connection() as connection:
        rows = connection.execute(SQL["present_objects"], {"hashes": sorted(asked)}, prepare=True).fetchall()
    found = ((ObjectHash(bytes(name)), directory) for name, directory in rows)
    return asked - {name for name, directory in found if stores.at(directory).present(name)}


def hold(tx: Tx, hashes: Collection[ObjectHash]) -> None:
    """Lock objects against collection until the transaction ends. Raises `ObjectsMissing`."""
    if not hashes:
        return
    rows = tx.execute(SQL["hold_objects"], {"hashes": sorted(hashes)}, prepare=True).fetchall()
    absent = frozenset(hashes) - {ObjectHash(bytes(found)) for (found,) in rows}
    if absent:
        raise ObjectsMissing(absent)


def put(db: Database, object_hash: ObjectHash, data: memoryview) -> None:
    """Store an object unless it is there. Raises `ObjectCorrupt` if the hash is not that of the data."""
    content = data.cast("B")
    if hashlib.sha256(content).digest() != object_hash:
        raise ObjectCorrupt(f"the data do not have the hash {object_hash.hex()[:12]}")
    for _ in range(TRIES):
        if not missing(db, [object_hash]):
            return
        with db.connection() as connection:
            store = stores.current(connection)
        if store.write(db, object_hash, content):
            return
    raise LinkError(f"object {object_hash.hex()[:12]} cannot be stored: it was collected again and again")


def size(db: Database, object_hash: ObjectHash) -> int:
    """An object's size in bytes. Raises `ObjectUnknown`."""
    with db.connection() as connection:
        return _find(connection, object_hash)[0]


def read(db: Database, object_hash: ObjectHash, into: memoryview) -> None:
    """Fill `into`, as long as the object, with its bytes, and verify them. Raises `ObjectUnknown`, `ObjectCorrupt`."""
    target = into.cast("B")
    with db.connection() as connection:
        length, directory = _find(connection, object_hash)
        if length != len(target):
            raise ObjectCorrupt(f"object {object_hash.hex()[:12]} has {length} bytes, not {len(target)}")
        found = stores.at(directory).read(connection, object_hash, target)
    if found != object_hash:
        raise ObjectCorrupt(f"object {object_hash.hex()[:12]} does not have its hash")


def _find(tx: Tx, object_hash: ObjectHash) -> tuple[int, str | None]:
    row = tx.execute(SQL["find_object"], {"object_hash": object_hash}).fetchone()
    if row is None:
        raise ObjectUnknown(f"there is no object {object_hash.hex()[:12]}")
    length, directory = row
    return length, directory
