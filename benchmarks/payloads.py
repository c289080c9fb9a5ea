"""The benchmark `payloads`: objects in and out of the state store, beside one bytea parameter on the same server.

What is stored comes from a mapped file that is in the page cache; it is read into memory that was never touched, in the
large cell into a mapped file. Both sides compute the sha256 of what they store and verify what they read.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import psycopg

from benchmarks import flq_federation, workplace
from benchmarks.failure import BenchmarkError
from benchmarks.harness import Benchmark, Cell, Goal, Measure, Metric, Values
from flq.link import collection, objects
from flq.link.database import Database
from flq.local import federation as embedded
from flq.wire.ids import ObjectHash

MB = 1 << 20
COMPARED = 100
LARGE = 1024
CELL = f"{COMPARED} MB"
LARGE_CELL = f"{LARGE} MB"

METRICS = (
    Metric("write", "write", "s"),
    Metric("read", "read", "s"),
    Metric("client", "private memory of the client above its start", "MB"),
    Metric("server", "private memory of the server process above its start", "MB"),
)
GOALS = (
    Goal(CELL, "write", ratio=1.6),
    Goal(CELL, "read", ratio=2.5),
    Goal(LARGE_CELL, "client", at_most=64),
    Goal(LARGE_CELL, "server", at_most=32),
)


class Server:
    """The server of all sides: that of an embedded federation."""

    def __init__(self) -> None:
        self.dsn = ""
        self.folder = Path()
        self.client_base = 0

    @contextmanager
    def up(self) -> Iterator[None]:
        """While it is up there are a database, at `dsn`, and a folder for files.

        `client_base` is the private memory of this process before it has transferred anything, in bytes.
        """
        self.client_base = private(os.getpid())
        with flq_federation.federation() as federation, workplace.folder("payloads") as self.folder:
            federation.up(1)
            addresses = embedded.addresses(federation.home)
            assert addresses is not None, "it is up"
            self.dsn = addresses.dsn
            yield


def benchmark(*, quick: bool, peers: bool) -> Benchmark:  # noqa: ARG001 - as all benchmarks are made
    """The benchmark."""
    server = Server()
    large = COMPARED if quick else LARGE
    small = {"flq": partial(_flq, server, COMPARED, into_file=False), "bytea": partial(_bytea, server, COMPARED)}
    return Benchmark(
        name="payloads",
        title="Payloads in and out of the state store",
        metrics=METRICS,
        goals=GOALS,
        cells=[Cell(CELL, small), Cell(LARGE_CELL, {"flq": partial(_flq, server, large, into_file=True)})],
        settings={
            "megabytes": {CELL: COMPARED, LARGE_CELL: large},
            "flq": "flq.link.objects; rows of 1 MiB, a commit for each 64",
            "bytea": "one parameter and one column in binary form, STORAGE EXTERNAL, by psycopg",
        },
        warmups=1,
        around=server.up,
    )


@contextmanager
def _flq(server: Server, megabytes: int, *, into_file: bool) -> Iterator[Measure]:
    db = Database(server.dsn, application="flq benchmark")
    try:
        with db.connection() as connection:  # it is the one that all measurements use
            row = connection.execute("SELECT pg_backend_pid()").fetchone()
        assert row is not None, "it has a pid"
        bases = {os.getpid(): server.client_base, row[0]: private(row[0])}
        yield partial(_measure_flq, db, server.folder, megabytes, bases, into_file=into_file)
    finally:
        db.close()


@contextmanager
def _bytea(server: Server, megabytes: int) -> Iterator[Measure]:
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE one_value (hash bytea PRIMARY KEY, data bytea)")
        connection.execute("ALTER TABLE one_value ALTER data SET STORAGE EXTERNAL")
        yield partial(_measure_bytea, connection, server.folder, megabytes)


def _measure_flq(db: Database, folder: Path, megabytes: int, bases: Mapping[int, int], *, into_file: bool) -> Values:
    source, copy = _source(folder, megabytes), folder / "copy"
    peaks = Peaks(bases)
    with peaks if into_file else nullcontext():  # whoever watches memory takes time
        with _mapped(source) as content:
            begun = time.perf_counter()
            name = ObjectHash(hashlib.sha256(content).digest())
            objects.put(db, name, content)
            write = time.perf_counter() - begun
        with _mapped(copy, size=megabytes * MB) if into_file else nullcontext(_fresh(megabytes)) as target:
            begun = time.perf_counter()
            objects.read(db, name, target)
            read = time.perf_counter() - begun
    source.unlink()
    copy.unlink(missing_ok=True)
    with db.connection() as connection:
        connection.execute("UPDATE flq_state.object_pin SET pinned_until = '-infinity'")
    collection.collect(db)
    _settle(db)
    memory = dict(zip(("client", "server"), ([peak] for peak in peaks.megabytes), strict=True)) if into_file else {}
    return {"write": [write], "read": [read], **memory}


def _measure_bytea(connection: psycopg.Connection[tuple[bytes, ...]], folder: Path, megabytes: int) -> Values:
    source = _source(folder, megabytes)
    cursor = connection.cursor(binary=True)
    with _mapped(source) as content:
        begun = time.perf_counter()
        name = hashlib.sha256(content).digest()
        cursor.execute("INSERT INTO one_value (hash, data) VALUES (%b, %b)", [name, content])
        written = time.perf_counter()
    row = cursor.execute("SELECT data FROM one_value WHERE hash = %b", [name]).fetchone()
    if row is None or hashlib.sha256(row[0]).digest() != name:
        raise BenchmarkError("the value that was read is not the one that was written")
    read = time.perf_counter() - written
    source.unlink()
    connection.execute("TRUNCATE one_value")
    connection.execute("CHECKPOINT")
    return {"write": [written - begun], "read": [read]}


def _fresh(megabytes: int) -> memoryview:
    """Memory that was never touched, as what the driver of the other side reads into."""
    return np.empty(megabytes * MB, np.uint8).data


def _settle(db: Database) -> None:
    """Pay for what was written before the next measurement begins."""
    with db.connection() as connection:
        connection.execute("VACUUM flq_state.object_chunk")
        connection.execute("CHECKPOINT")


class Peaks:
    """The most private memory that some processes have had above what they began with, which is given by pid."""

    def __init__(self, bases: Mapping[int, int]) -> None:
        self._bases = bases
        self._peaks = dict.fromkeys(bases, 0)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Peaks:  # noqa: PYI034 - nobody derives from it
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    @property
    def megabytes(self) -> list[float]:
        """The peaks, in the order of the processes."""
        return [peak / MB for peak in self._peaks.values()]

    def _watch(self) -> None:
        while not self._stopped.wait(0.02):
            for pid, base in self._bases.items():
                self._peaks[pid] = max(self._peaks[pid], private(pid) - base)


def private(pid: int) -> int:
    """The memory of a process that is neither of a file nor shared, in bytes."""
    found = re.search(r"^Anonymous: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


@contextmanager
def _mapped(path: Path, *, size: int | None = None) -> Iterator[memoryview]:
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


def _source(folder: Path, megabytes: int) -> Path:
    """A file of random bytes, in the page cache; no two measurements store the same."""
    path = folder / "source"
    with path.open("wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(MB))
    return path
