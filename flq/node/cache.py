"""The object cache of a host: content-addressed files, fetched once however many hosted nodes need them.

The files lie in `objects/` below the SuperNode's cache folder, named by the hex of their hash. They are complete or
not there (written aside, then renamed). Files of an earlier process are trusted only after their hash was checked: a
machine that lost power may have kept a name without its content.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from flq.errors import ObjectCorrupt
from flq.log import get
from flq.wire import mapped
from flq.wire.ids import ObjectHash
from flq.wire.objects import Objects

log = get(__name__)


class ObjectCache:
    """Keeps the objects used last, up to `limit` bytes, and all that are pinned.

    `fetch` may be called from any thread, for different objects; the rest is for the main loop.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self._limit = limit
        self._lock = threading.Lock()
        self._sizes: dict[ObjectHash, int] = {}  # least recently used first
        self._unchecked: set[ObjectHash] = set()
        self._pins: Counter[ObjectHash] = Counter()
        self._bytes = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._find_what_is_there()

    def path(self, object_hash: ObjectHash) -> Path:
        """Where the object lies, if it is in the cache."""
        return self.folder / object_hash.hex()

    def pin(self, hashes: Iterable[ObjectHash]) -> set[ObjectHash]:
        """Keep `hashes` until they are unpinned; returns those that have to be fetched."""
        absent = set()
        with self._lock:
            for object_hash in hashes:
                self._pins[object_hash] += 1
                if object_hash not in self._sizes or object_hash in self._unchecked:
                    absent.add(object_hash)
                else:
                    self._sizes[object_hash] = self._sizes.pop(object_hash)  # now the one used last
        return absent

    def unpin(self, hashes: Iterable[ObjectHash]) -> None:
        """Take pins back; what is too much then goes."""
        with self._lock:
            for object_hash in hashes:
                self._pins[object_hash] -= 1
                if self._pins[object_hash] <= 0:
                    del self._pins[object_hash]
            self._shrink()

    def fetch(self, door: Objects, object_hash: ObjectHash, size: int) -> None:
        """Bring the object from the SuperLink, or check the file of an earlier process.

        Raises what `Objects.read` raises.
        """
        if self._is_sound(object_hash, size):
            return
        aside = self.folder / f".{object_hash.hex()}.{os.getpid()}.{threading.get_ident()}"
        try:
            with aside.open("xb+") as file:
                if size:
                    door.read(object_hash, mapped.writable(file, size))
                elif hashlib.sha256().digest() != object_hash:
                    raise ObjectCorrupt(f"object {object_hash.hex()} is said to be empty, which its hash denies")
            self._store(object_hash, aside, size)
        finally:
            aside.unlink(missing_ok=True)

    def _store(self, object_hash: ObjectHash, file: Path, size: int) -> None:
        file.replace(self.path(object_hash))
        with self._lock:
            self._unchecked.discard(object_hash)
            if object_hash not in self._sizes:
                self._bytes += size
            self._sizes[object_hash] = size
            self._shrink()

    def _is_sound(self, object_hash: ObjectHash, size: int) -> bool:
        with self._lock:
            known = self._sizes.get(object_hash)
            if known is None:
                return False
            if object_hash not in self._unchecked:
                return True
        path = self.path(object_hash)
        with contextlib.suppress(OSError), path.open("rb") as file:
            if known == size and hashlib.file_digest(file, "sha256").digest() == object_hash:
                with self._lock:
                    self._unchecked.discard(object_hash)
                return True
        log.warning("the cached object %s is damaged, it is fetched anew", object_hash.hex())
        with self._lock:
            self._forget(object_hash)
        return False

    def _shrink(self) -> None:
        if self._bytes <= self._limit:
            return
        for object_hash in [known for known in self._sizes if known not in self._pins]:
            self._forget(object_hash)
            if self._bytes <= self._limit:
                return

    def _forget(self, object_hash: ObjectHash) -> None:
        self._bytes -= self._sizes.pop(object_hash, 0)
        self._unchecked.discard(object_hash)
        # A worker that has mapped the file keeps its pages.
        self.path(object_hash).unlink(missing_ok=True)

    def _find_what_is_there(self) -> None:
        found = []
        for entry in os.scandir(self.folder):
            try:
                object_hash = ObjectHash(bytes.fromhex(entry.name))
                status = entry.stat(follow_symlinks=False)
            except (ValueError, OSError):
                if not _is_at_work(entry.name):
                    Path(entry.path).unlink(missing_ok=True)  # left over from a fetch that was cut off
                continue
            found.append((status.st_mtime, object_hash, status.st_size))
        for _at, object_hash, size in sorted(found):
            self._sizes[object_hash] = size
            self._unchecked.add(object_hash)
            self._bytes += size
        self._shrink()


def _is_at_work(aside: str) -> bool:
    """Whether the process lives whose fetch writes this file: it hosts the nodes until this one has connected."""
    _, _, pid = aside.rpartition(".")[0].rpartition(".")
    try:
        os.kill(int(pid), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True
