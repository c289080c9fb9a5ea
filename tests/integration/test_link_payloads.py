"""Large objects: through memory-mapped files, in flat memory of the client and of the server."""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flq.link import objects, stores
from flq.link.database import Database
from flq.wire.ids import ObjectHash

MB = 1 << 20
SIZE = 256 * MB + 17
CLIENT_MB = 64
SERVER_MB = 32


def anonymous(pid: int) -> int:
    """The memory of a process that is neither of a file nor shared, in bytes."""
    found = re.search(r"^Anonymous: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


class Peaks:
    """The most that this process and a backend have had above what they began with."""

    def __init__(self, *pids: int) -> None:
        self._pids = pids
        self._base = [anonymous(pid) for pid in pids]
        self._peaks = [0] * len(pids)
        self._stopped = threading.Event()

    @contextmanager
    def watched(self) -> Iterator[Peaks]:
        watching = threading.Thread(target=self._watch)
        watching.start()
        try:
            yield self
        finally:
            self._stopped.set()
            watching.join()

    @property
    def megabytes(self) -> list[float]:
        return [peak / MB for peak in self._peaks]

    def _watch(self) -> None:
        while not self._stopped.wait(0.01):
            now = [anonymous(pid) - base for pid, base in zip(self._pids, self._base, strict=True)]
            self._peaks = [max(pair) for pair in zip(self._peaks, now, strict=True)]


@contextmanager
def mapped(path: Path, *, size: int | None = None) -> Iterator[memoryview]:
    if size is not None:
        path.touch()
        os.truncate(path, size)
    access = mmap.ACCESS_READ if size is None else mmap.ACCESS_WRITE
    with path.open("rb" if size is None else "r+b") as file, mmap.mmap(file.fileno(), 0, access=access) as view:
        content = memoryview(view)
        try:
            yield content
        finally:
            content.release()


def fill(path: Path, size: int) -> None:
    block = os.urandom(MB)
    with path.open("wb") as file:
        for n in range(-(-size // MB)):
            file.write(n.to_bytes(8, "little") + block[8 : min(MB, size - n * MB)])


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is told by Linux")
@pytest.mark.parametrize("store", ["database", "directory"])
def test_a_large_object_goes_in_and_out_in_flat_memory(db: Database, tmp_path: Path, store: str):
    if store == "directory":
        stores.choose(db, tmp_path / "objects")
    source, copy = tmp_path / "source", tmp_path / "copy"
    fill(source, SIZE)
    with db.connection() as connection:
        row = connection.execute("SELECT pg_backend_pid()").fetchone()  # the connection that will be used again
    assert row is not None
    with Peaks(os.getpid(), row[0]).watched() as peaks:
        with mapped(source) as content:
            name = ObjectHash(hashlib.sha256(content).digest())
            objects.put(db, name, content)
        with mapped(copy, size=SIZE) as content:
            objects.read(db, name, content)
        client, server = peaks.megabytes
    assert client < CLIENT_MB
    assert server < SERVER_MB
    with mapped(copy) as there, mapped(source) as here:
        assert there == here
