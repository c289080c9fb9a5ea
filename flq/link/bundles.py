"""App bundles, by the sha256 of their bytes."""

from __future__ import annotations

import hashlib
from typing import Final

from flq.errors import ObjectCorrupt, ObjectUnknown
from flq.link.database import Database, Tx
from flq.link.sql import load
from flq.wire.ids import ObjectHash

SQL: Final = load("bundles")


def store(tx: Tx, data: bytes) -> ObjectHash:
    """Store a bundle unless it is there, and hold it until the transaction ends; returns its hash."""
    bundle_hash = ObjectHash(hashlib.sha256(data).digest())
    while tx.execute(SQL["hold_bundle"], {"bundle_hash": bundle_hash}).fetchone() is None:
        tx.execute(SQL["insert_bundle"], {"bundle_hash": bundle_hash, "data": data})
    return bundle_hash


def read(db: Database, bundle_hash: ObjectHash) -> bytes:
    """A bundle's bytes, verified. Raises `ObjectUnknown` or `ObjectCorrupt`."""
    with db.connection() as connection, connection.cursor(binary=True) as cursor:
        row = cursor.execute(SQL["read_bundle"], {"bundle_hash": bundle_hash}).fetchone()
    if row is None:
        raise ObjectUnknown(f"there is no bundle {bundle_hash.hex()[:12]}")
    data = bytes(row[0])
    if hashlib.sha256(data).digest() != bundle_hash:
        raise ObjectCorrupt(f"bundle {bundle_hash.hex()[:12]} does not have its hash")
    return data
