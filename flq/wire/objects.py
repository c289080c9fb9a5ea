"""The object door: content-addressed payloads, shared by Grid and Fleet."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from flq.wire.ids import ObjectHash

CHUNK_BYTES = 1 << 20
"""Size of a stored row of an object, but for the last one."""


class Objects(Protocol):
    """Stores and reads content-addressed byte strings."""

    def missing(self, hashes: Iterable[ObjectHash]) -> frozenset[ObjectHash]:
        """Say which of `hashes` are not stored.

        Those that are stored MUST NOT be collected within the next hour, so that a message that names them can
        be pushed or submitted.
        """

    def put(self, object_hash: ObjectHash, data: memoryview) -> None:
        """Store `data`, whose sha256 is `object_hash`.

        MUST be idempotent, MUST NOT let anyone see half an object, and MAY be called with an object that is there.
        Raises `ObjectCorrupt` if the hash is not that of the data.
        """

    def read(self, object_hash: ObjectHash, into: memoryview) -> None:
        """Fill `into`, whose length is the object's size, with the object's bytes.

        MUST verify the hash. Raises `ObjectUnknown`, or `ObjectCorrupt`.
        """

    def size(self, object_hash: ObjectHash) -> int:
        """The object's size in bytes. Raises `ObjectUnknown`."""
