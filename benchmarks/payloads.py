"""The benchmark `payloads`: arrays in and out of the state store, beside one bytea parameter on the same server.

`python -m benchmarks.payloads [--quick]` takes it by itself. fsync and synchronous_commit are on. What is stored comes
from a mapped file that is in the page cache; it is read into memory, in the large cell into a mapped file. flq and
`bytea` compute the sha256 of what they store and verify what they read, `bytea-unverified` does not.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import psycopg

from benchmarks import flq_federation, workplace
from benchmarks.harness import Benchmark, Cell, Goal, Measure, Metric, Values, Watcher, rows, run
from benchmarks.report import spoken
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
    """One embedded federation for all sides, up while one of them is."""

    def __init__(self) -> None:
        self._users = 0
        self._stack = ExitStack()
        self.dsn = ""
        self.folder = Path()

    @contextmanager
    def used(self) -> Iterator[Server]:
        """A folder and a database; the last user takes them down."""
        if not self._users:
            federation = self._stack.enter_context(flq_federation.federation())
            federation.up(1)
            addresses = embedded.addresses(federation.home)
            assert addresses is not None, "it is up"
            self.dsn = addresses.dsn
            self.folder = self._stack.enter_context(workplace.folder("payloads"))
        self._users += 1
        try:
            yield self
        finally:
            self._users -= 1
            if not self._users:
                self._stack.close()


def benchmark(*, quick: bool, peers: bool) -> Benchmark:  # noqa: ARG001 - as all benchmarks are made
    """The benchmark."""
    server = Server()
    large = COMPARED if quick else LARGE
    return Benchmark(
        name="payloads",
        title="Payloads in and out of the state store",
        metrics=METRICS,
        goals=GOALS,
        cells=[
            Cell(
                CELL,
                {
                    "flq": partial(_flq, server, COMPARED, into_file=False),
                    "bytea": partial(_bytea, server, COMPARED, verified=True),
                    "bytea-unverified": partial(_bytea, server, COMPARED, verified=False),
                },
            ),
            Cell(LARGE_CELL, {"flq": partial(_flq, server, large, into_file=True)}),
        ],
        settings={"megabytes": {CELL: COMPARED, LARGE_CELL: large}, "fsync": "on", "synchronous_commit": "on"},
        warmups=1,
    )


@contextmanager
def _flq(server: Server, megabytes: int, *, into_file: bool) -> Iterator[Measure]:
    with server.used() as used:
        db = Database(used.dsn, application="flq benchmark")
        try:
            yield partial(_measure_flq, db, used.folder, megabytes, into_file=into_file)
        finally:
            db.close()


@contextmanager
def _bytea(server: Server, megabytes: int, *, verified: bool) -> Iterator[Measure]:
    with server.used() as used, psycopg.connect(used.dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS one_value (hash bytea PRIMARY KEY, data bytea)")
        connection.execute("ALTER TABLE one_value ALTER data SET STORAGE EXTERNAL")
        yield partial(_measure_bytea, connection, used.folder, megabytes, verified=verified)


def _measure_flq(db: Database, folder: Path, megabytes: int, *, into_file: bool) -> Values:
    source, copy = _source(folder, megabytes), folder / "copy"
    with db.connection() as connection:
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    peaks = Peaks(os.getpid(), row[0])
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


def _measure_bytea(
    connection: psycopg.Connection[tuple[bytes, ...]], folder: Path, megabytes: int, *, verified: bool
) -> Values:
    source = _source(folder, megabytes)
    with _mapped(source) as content:
        name = hashlib.sha256(content[:MB]).digest()
        begun = time.perf_counter()
        if verified:
            name = hashlib.sha256(content).digest()
        cursor = connection.cursor(binary=True)
        cursor.execute("INSERT INTO one_value (hash, data) VALUES (%b, %b)", [name, content])
        written = time.perf_counter()
        row = cursor.execute("SELECT data FROM one_value WHERE hash = %b", [name]).fetchone()
        assert row is not None
        if verified:
            assert hashlib.sha256(row[0]).digest() == name
        done = time.perf_counter()
    source.unlink()
    connection.execute("TRUNCATE one_value")
    connection.execute("CHECKPOINT")
    return {"write": [written - begun], "read": [done - written]}


def _fresh(megabytes: int) -> memoryview:
    return np.empty(
        megabytes * MB, np.uint8
    ).data  # as the driver's buffer of the other side: pages that were never touched


def _settle(db: Database) -> None:
    """Pay for what was written before the next measurement begins."""
    with db.connection() as connection:
        connection.execute("VACUUM flq_state.object_chunk")
        connection.execute("CHECKPOINT")


class Peaks:
    """The most private memory that some processes have had above what they began with."""

    def __init__(self, *pids: int) -> None:
        self._pids = pids
        self._base = [private(pid) for pid in pids]
        self._peaks = [0] * len(pids)
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
        return [peak / MB for peak in self._peaks]

    def _watch(self) -> None:
        while not self._stopped.wait(0.02):
            now = [private(pid) - base for pid, base in zip(self._pids, self._base, strict=True)]
            self._peaks = [max(pair) for pair in zip(self._peaks, now, strict=True)]


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


def main() -> None:
    """Take it, and print what came of it."""
    quick = "--quick" in sys.argv
    found = benchmark(quick=quick, peers=False)
    for row in rows(found, run(found, 3 if quick else 5, Watcher())):
        told = ", ".join(f"{side} {spoken(summary.median, row.metric.unit)}" for side, summary in row.sides.items())
        ratios = ", ".join(f"{ratio.of_medians:.2f}x {side}" for side, ratio in row.ratios.items())
        print(f"{row.cell}, {row.metric.title}: {told}{'; ' + ratios if ratios else ''}")


if __name__ == "__main__":
    main()
