"""Where the bytes of objects are: in the database, or in files below a folder that every process shares.

Which of the two takes new objects is a row of `setting`, so that all processes agree. An object is read where its own
row says that it is, so the choice can be changed at any time.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Final, Protocol

import psycopg

from flq.errors import LinkError, ObjectCorrupt, ObjectUnknown
from flq.link import shared
from flq.link.database import Database, Tx
from flq.link.sql import load
from flq.wire.ids import ObjectHash
from flq.wire.objects import CHUNK_BYTES

SQL: Final = load("objects")

SETTING = "object_store"
"""The setting: the path of the folder; without it new objects go into the database."""

COMMIT_CHUNKS = 64
"""Chunks per transaction of an upload, so that no reader's snapshot is held back for long."""

UPLOAD_PIN_SECONDS = 900.0
"""How long a fresh object waits for what will refer to it."""

DRAFTS = "drafts"
"""The folder of files that are being written. On the same file system, so that a rename puts them in their place."""

_PIECE = 1 << 20

_HASHED_AT_ONCE = 4 * CHUNK_BYTES
"""Up to this size an object is hashed by the thread that reads it: another one costs more than it saves."""

_COPY_HEADER = 19
"""Bytes before the first row of a binary COPY: signature, flags, and the length of an extension that is not there."""

_ROW = struct.Struct("!hi")
"""What stands before the bytes of a row with one field: how many fields, and the length of this one."""


class ObjectStore(Protocol):
    """Keeps the bytes of objects; their rows in `object` say that they are there."""

    def write(self, db: Database, object_hash: ObjectHash, content: memoryview) -> bool:
        """Store verified bytes, then the object's row.

        MUST NOT let anyone see half an object, and MUST go on where an interrupted write of the same object was.
        False if the object was completed by another, or collected, while it was written: then look again.
        """

    def read(self, tx: Tx, object_hash: ObjectHash, into: memoryview) -> bytes:
        """Fill `into` and return the sha256 of what was read. Raises `ObjectCorrupt` if the length differs."""

    def present(self, object_hash: ObjectHash) -> bool:
        """Whether the bytes of an object that has a row are there."""

    def discard(self, tx: Tx, hashes: list[ObjectHash]) -> None:
        """Remove the bytes of objects whose rows are locked; what is not there is no error."""


def current(tx: Tx) -> ObjectStore:
    """The store that takes new objects."""
    return at(_directory(tx))


def at(directory: str | None) -> ObjectStore:
    """The store that an object's row names."""
    return ChunkStore() if directory is None else DirectoryStore(Path(directory))


def choose(db: Database, directory: Path | None) -> None:
    """Store new objects below `directory`, or in the database. Raises `LinkError` if it cannot be written to."""
    if directory is not None:
        directory = Path(os.path.abspath(directory))  # noqa: PTH100 - resolve() would follow links
        DirectoryStore(directory).prepare()
    with db.connection() as connection:
        shared.put(connection, SETTING, None if directory is None else str(directory))


def chosen(db: Database) -> Path | None:
    """The folder that new objects go into, or None for the database."""
    with db.connection() as connection:
        directory = _directory(connection)
    return None if directory is None else Path(directory)


class ChunkStore:
    """Rows of 1 MiB in the database, inserted in a pipeline and read by binary COPY."""

    def write(self, db: Database, object_hash: ObjectHash, content: memoryview) -> bool:
        """See `ObjectStore.write`. One transaction, or one for each 64 MiB."""
        count = -(-len(content) // CHUNK_BYTES)
        completed = False
        with db.connection() as connection:
            if count > COMMIT_CHUNKS:
                self._write_ahead(connection, object_hash, content, count)
            with connection.transaction():
                if count <= COMMIT_CHUNKS:
                    insert(connection, object_hash, content, range(count))
                elif connection.execute(SQL["lock_upload"], {"object_hash": object_hash}).fetchone() is None:
                    return False
                completed = self._complete(connection, object_hash, len(content), count)
                if not completed:
                    raise psycopg.Rollback  # chunks of no object and no upload would never be collected
        return completed

    def _write_ahead(self, connection: Tx, object_hash: ObjectHash, content: memoryview, count: int) -> None:
        """Store the chunks that are not there yet, in transactions of 64 MiB."""
        _touch(connection, object_hash, None)
        rows = connection.execute(SQL["stored_chunks"], {"object_hash": object_hash}).fetchall()
        stored = {sequence for (sequence,) in rows}
        wanted = [n for n in range(count) if n not in stored]
        for start in range(0, len(wanted), COMMIT_CHUNKS):
            with connection.transaction():
                _touch(connection, object_hash, None)
                insert(connection, object_hash, content, wanted[start : start + COMMIT_CHUNKS])

    def read(self, tx: Tx, object_hash: ObjectHash, into: memoryview) -> bytes:
        """See `ObjectStore.read`. Another thread hashes: the server would have to wait for a reader who does both."""
        if len(into) <= _HASHED_AT_ONCE:
            self._receive(tx, object_hash, into, lambda _: None)
            return hashlib.sha256(into).digest()
        ends: SimpleQueue[int | None] = SimpleQueue()
        with ThreadPoolExecutor(1, "flq-hash") as hasher:
            digest = hasher.submit(_hash_behind, into, ends)
            try:
                self._receive(tx, object_hash, into, ends.put)
            except BaseException:
                ends.put(None)
                raise
            return digest.result()

    def _receive(self, tx: Tx, object_hash: ObjectHash, into: memoryview, arrived: Callable[[int], object]) -> None:
        """Fill `into`, and call `arrived` with each place up to which it is filled.

        A row is a message of the protocol: its bytes are copied once, into their place.
        """
        place = 0
        with tx.cursor() as cursor, cursor.copy(SQL["read_chunks"], {"object_hash": object_hash}) as copy:
            for message in copy:
                chunk = _only_field(memoryview(message), first=place == 0)
                if chunk is None:
                    continue  # the end; what follows it says that there is no more
                end = place + len(chunk)
                if end > len(into):
                    raise ObjectCorrupt(f"object {object_hash.hex()[:12]} has more bytes than it should")
                into[place:end] = chunk
                place = end
                arrived(place)
        if place != len(into):
            raise ObjectCorrupt(f"object {object_hash.hex()[:12]} has {place} of {len(into)} bytes")

    def present(self, object_hash: ObjectHash) -> bool:  # noqa: ARG002 - the row is written with the chunks
        """See `ObjectStore.present`."""
        return True

    def discard(self, tx: Tx, hashes: list[ObjectHash]) -> None:
        """See `ObjectStore.discard`. The chunks go with the rows: `collect_objects` deletes both."""

    def _complete(self, tx: Tx, object_hash: ObjectHash, size: int, count: int) -> bool:
        values = {"object_hash": object_hash, "size": size, "pin": UPLOAD_PIN_SECONDS}
        if tx.execute(SQL["complete_object"], values).fetchone() == (0,):
            return False
        return tx.execute(SQL["count_chunks"], {"object_hash": object_hash}).fetchone() == (count, size)


class DirectoryStore:
    """Files by hash below a folder, in 65,536 folders. Written under another name, synced, and renamed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def prepare(self) -> None:
        """Make the folder, and see that it can be written to. Raises `LinkError`."""
        try:
            drafts = self._directory / DRAFTS
            drafts.mkdir(parents=True, exist_ok=True)
            probe = drafts / f"probe-{secrets.token_hex(8)}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as exc:
            raise _unusable(self._directory, exc) from exc

    def path(self, object_hash: ObjectHash) -> Path:
        """The file of an object."""
        name = object_hash.hex()
        return self._directory / name[:2] / name[2:4] / name

    def write(self, db: Database, object_hash: ObjectHash, content: memoryview) -> bool:
        """See `ObjectStore.write`. An interrupted write begins again: its draft is removed after a day."""
        with db.connection() as connection:
            _touch(connection, object_hash, str(self._directory))
        self._write_file(self.path(object_hash), content)
        values = {
            "object_hash": object_hash,
            "size": len(content),
            "directory": str(self._directory),
            "pin": UPLOAD_PIN_SECONDS,
        }
        completed = False
        with db.transaction() as tx:
            tx.execute(SQL["complete_file"], values)
            completed = self.present(object_hash)
            if not completed:
                raise psycopg.Rollback  # a collection of the same object has taken the file
        return completed

    def read(self, tx: Tx, object_hash: ObjectHash, into: memoryview) -> bytes:  # noqa: ARG002 - the interface's
        """See `ObjectStore.read`. Raises `ObjectUnknown` if the file is not there."""
        path = self.path(object_hash)
        digest = hashlib.sha256()
        place = 0
        try:
            with path.open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                if size != len(into):
                    raise ObjectCorrupt(f"{path} has {size} bytes, not {len(into)}")
                while place < len(into):
                    count = file.readinto(into[place : place + _PIECE])
                    if not count:
                        raise ObjectCorrupt(f"{path} has shrunk to {place} bytes")
                    digest.update(into[place : place + count])
                    place += count
        except FileNotFoundError as exc:
            hint = "is the folder mounted on this machine?"
            raise ObjectUnknown(f"object {object_hash.hex()[:12]} is not in {self._directory}", hint=hint) from exc
        except OSError as exc:
            raise _unusable(self._directory, exc) from exc
        return digest.digest()

    def present(self, object_hash: ObjectHash) -> bool:
        """See `ObjectStore.present`."""
        return self.path(object_hash).is_file()

    def discard(self, tx: Tx, hashes: list[ObjectHash]) -> None:  # noqa: ARG002 - the interface's
        """See `ObjectStore.discard`. Before the commit: behind it, the same object may have been stored anew.

        If the commit fails, rows without files are left, which count as not present.
        """
        for object_hash in hashes:
            try:
                self.path(object_hash).unlink(missing_ok=True)
            except OSError as exc:
                raise _unusable(self._directory, exc) from exc

    def discard_drafts(self, older_than: float) -> int:
        """Remove the drafts of writes that were interrupted; `older_than` is a Unix time. Returns how many."""
        removed = 0
        try:
            for draft in (self._directory / DRAFTS).iterdir():
                if draft.stat().st_mtime < older_than:
                    draft.unlink(missing_ok=True)
                    removed += 1
        except FileNotFoundError:
            return removed
        except OSError as exc:
            raise _unusable(self._directory, exc) from exc
        return removed

    def _write_file(self, path: Path, content: memoryview) -> None:
        draft = self._directory / DRAFTS / f"{path.name[:16]}-{secrets.token_hex(8)}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("xb", buffering=0) as file:
                place = 0
                while place < len(content):
                    place += file.write(content[place : place + _PIECE])
                os.fsync(file.fileno())
            draft.replace(path)
            for folder in (path.parent, path.parent.parent, self._directory):
                _sync(folder)
        except OSError as exc:
            with suppress(OSError):  # what is left of it goes after a day
                draft.unlink()
            raise _unusable(self._directory, exc) from exc


def insert(tx: Tx, object_hash: ObjectHash, content: memoryview, sequences: list[int] | range) -> None:
    """Insert chunks, in a pipeline: the server writes one while the next is on its way."""
    with tx.pipeline(), tx.cursor() as cursor:
        for n in sequences:
            chunk = content[n * CHUNK_BYTES : (n + 1) * CHUNK_BYTES]
            cursor.execute(SQL["insert_chunk"], {"object_hash": object_hash, "sequence": n, "data": chunk}, binary=True)


def _hash_behind(content: memoryview, ends: SimpleQueue[int | None]) -> bytes:
    """The sha256 of `content`, which another thread fills up to each of `ends`; None says that it has given up.

    All that is there is hashed at once: for each piece, the two threads have to wait for the interpreter's lock.
    """
    digest = hashlib.sha256()
    place = 0
    while place < len(content):
        end = ends.get()
        while end is not None and not ends.empty():
            end = ends.get()
        if end is None:
            break
        digest.update(content[place:end])
        place = end
    return digest.digest()


def _directory(tx: Tx) -> str | None:
    found = shared.get(tx, SETTING)
    return None if found is None else str(found)


def _only_field(message: memoryview, *, first: bool) -> memoryview | None:
    """The field of a row of a binary COPY, as a view of the message; None for the end."""
    row = message[_COPY_HEADER:] if first else message
    if len(row) < _ROW.size:  # the end: -1 fields
        return None
    _, length = _ROW.unpack_from(row)
    return row[_ROW.size : _ROW.size + length]


def _touch(tx: Tx, object_hash: ObjectHash, directory: str | None) -> None:
    tx.execute(SQL["touch_upload"], {"object_hash": object_hash, "directory": directory})


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unusable(directory: Path, exc: OSError) -> LinkError:
    return LinkError(
        f"the object store {directory} cannot be used: {exc.strerror or exc}",
        hint="it is a folder that every process of the federation shares: `flq db store`",
    )
