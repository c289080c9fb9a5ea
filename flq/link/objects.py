"""Objects: content-addressed payloads in rows of 1 MiB, written in a pipeline and read by binary COPY.

The row in `object` is written last, so whoever sees it sees all chunks. Uploads commit every 64 MiB, so that no other
reader's snapshot is held back for long, and an interrupted one goes on where it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from typing import Final

from flq.errors import ObjectCorrupt, ObjectsMissing, ObjectUnknown
from flq.link.database import Database, Tx
from flq.link.sql import load
from flq.wire.ids import ObjectHash
from flq.wire.objects import CHUNK_BYTES

SQL: Final = load("objects")

COMMIT_CHUNKS = 64
"""Chunks per transaction of an upload."""


def missing(db: Database, hashes: Iterable[ObjectHash]) -> frozenset[ObjectHash]:
    """Those of `hashes` that are not stored; the others cannot be collected within the next hour."""
    asked = frozenset(hashes)
    if not asked:
        return asked
    with db.connection() as connection:
        rows = connection.execute(SQL["present_objects"], {"hashes": sorted(asked)}).fetchall()
    return asked - {ObjectHash(bytes(found)) for (found,) in rows}


def hold(tx: Tx, hashes: Collection[ObjectHash]) -> None:
    """Lock objects against collection until the transaction ends. Raises `ObjectsMissing`."""
    if not hashes:
        return
    rows = tx.execute(SQL["hold_objects"], {"hashes": sorted(hashes)}).fetchall()
    absent = frozenset(hashes) - {ObjectHash(bytes(found)) for (found,) in rows}
    if absent:
        raise ObjectsMissing(absent)


def put(db: Database, object_hash: ObjectHash, data: memoryview) -> None:
    """Store an object unless it is there. Raises `ObjectCorrupt` if the hash is not that of the data."""
    content = data.cast("B")
    if hashlib.sha256(content).digest() != object_hash:
        raise ObjectCorrupt(f"the data do not have the hash {object_hash.hex()[:12]}")
    with db.connection() as connection:
        if _size(connection, object_hash) is not None:
            return
        rows = connection.execute(SQL["stored_chunks"], {"object_hash": object_hash}).fetchall()
        stored = {sequence for (sequence,) in rows}
        wanted = [n for n in range(-(-len(content) // CHUNK_BYTES)) if n not in stored]
        for start in range(0, len(wanted), COMMIT_CHUNKS):
            _insert(connection, object_hash, content, wanted[start : start + COMMIT_CHUNKS])
        connection.execute(SQL["complete_object"], {"object_hash": object_hash, "size": len(content)})


def size(db: Database, object_hash: ObjectHash) -> int:
    """An object's size in bytes. Raises `ObjectUnknown`."""
    with db.connection() as connection:
        found = _size(connection, object_hash)
    if found is None:
        raise ObjectUnknown(f"there is no object {object_hash.hex()[:12]}")
    return found


def read(db: Database, object_hash: ObjectHash, into: memoryview) -> None:
    """Fill `into`, as long as the object, with its bytes, and verify them. Raises `ObjectUnknown`, `ObjectCorrupt`."""
    target = into.cast("B")
    digest = hashlib.sha256()
    place = 0
    with db.connection() as connection:
        found = _size(connection, object_hash)
        if found is None:
            raise ObjectUnknown(f"there is no object {object_hash.hex()[:12]}")
        if found != len(target):
            raise ObjectCorrupt(f"object {object_hash.hex()[:12]} has {found} bytes, not {len(target)}")
        with connection.cursor() as cursor, cursor.copy(SQL["read_chunks"], {"object_hash": object_hash}) as copy:
            copy.set_types(["bytea"])
            for (chunk,) in copy.rows():
                digest.update(chunk)
                if place + len(chunk) > len(target):
                    raise ObjectCorrupt(f"object {object_hash.hex()[:12]} has more bytes than it should")
                target[place : place + len(chunk)] = chunk
                place += len(chunk)
    if place != len(target) or digest.digest() != object_hash:
        raise ObjectCorrupt(f"object {object_hash.hex()[:12]} does not have its hash")


def _size(tx: Tx, object_hash: ObjectHash) -> int | None:
    row = tx.execute(SQL["object_size"], {"object_hash": object_hash}).fetchone()
    return None if row is None else int(row[0])


def _insert(connection: Tx, object_hash: ObjectHash, content: memoryview, sequences: list[int]) -> None:
    with connection.transaction(), connection.pipeline(), connection.cursor() as cursor:
        for n in sequences:
            chunk = content[n * CHUNK_BYTES : (n + 1) * CHUNK_BYTES]
            cursor.execute(SQL["insert_chunk"], {"object_hash": object_hash, "sequence": n, "data": chunk}, binary=True)
