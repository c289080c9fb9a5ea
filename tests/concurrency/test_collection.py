"""Collectors, pushes, submits, commits and uploads of the same few objects at once: what is referred to stays."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from flq.errors import ObjectsMissing
from flq.link import collection, objects, stores, verify
from flq.link.database import Database
from flq.link.grid import DbGrid
from flq.wire.fleet import Lease
from flq.wire.grid import Checkpoint
from flq.wire.ids import ObjectHash
from flq.wire.objects import CHUNK_BYTES
from tests.integration import link_acts as act
from tests.integration.link_acts import Doors

PUSHES = 40
PAYLOADS = [bytes([n]) * size for n in range(4) for size in (10, CHUNK_BYTES + n + 1)]
NAMES = {act.object_of(data): data for data in PAYLOADS}


class Shop:
    """Threads that go on until the pushes are done; the first failure of any ends all."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.failures: list[BaseException] = []
        self._threads: list[threading.Thread] = []

    def staff(self, work: Callable[[], None]) -> None:
        def until_done() -> None:
            try:
                while not self.done.is_set():
                    work()
            except BaseException as exc:
                self.failures.append(exc)
                self.done.set()
                raise

        self._threads.append(threading.Thread(target=until_done))

    def open(self) -> None:
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            thread.join(100)
            assert not thread.is_alive()
        assert self.failures == []


AN_HOUR_PASSES = """
WITH pins AS (SELECT object_hash FROM flq_state.object_pin ORDER BY object_hash FOR UPDATE)
UPDATE flq_state.object_pin p SET pinned_until = '-infinity' FROM pins WHERE p.object_hash = pins.object_hash
"""


class Clock:
    """Lets hours pass, which end the pins, but no more of them during one upload than it has tries for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._uploads: dict[object, int] = {}

    @contextmanager
    def upload(self) -> Iterator[None]:
        """An upload takes as long as the block."""
        upload = object()
        with self._lock:
            self._uploads[upload] = 0
        try:
            yield
        finally:
            with self._lock:
                del self._uploads[upload]

    def let_an_hour_pass(self, db: Database) -> None:
        """Nothing that was looked at or uploaded before is kept for that alone."""
        with self._lock:
            # a try is lost to another upload or to a collector, and each collector needs an hour
            if max(self._uploads.values(), default=0) >= objects.TRIES - 2:
                return
            for upload in self._uploads:
                self._uploads[upload] += 1
            with db.connection() as connection:
                connection.execute(AN_HOUR_PASSES)


class Patient:
    """Writes as Grid and SuperNode do: stores what is missing, until the write is taken."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    def write(self, write: Callable[[frozenset[ObjectHash]], object]) -> None:
        wanted = frozenset(random.sample(list(NAMES), 2))
        while True:
            for name in objects.missing(self._db, wanted):
                with self._clock.upload():
                    objects.put(self._db, name, memoryview(NAMES[name]))
            try:
                write(wanted)
            except ObjectsMissing:
                continue
            return


@pytest.mark.parametrize("directory", [False, True], ids=["database", "directory"])
def test_nothing_that_is_referred_to_is_collected(doors: Doors, db: Database, tmp_path: Path, *, directory: bool):
    if directory:
        stores.choose(db, tmp_path)
    fleet, hosted = doors.fleet("a", "b")
    nodes = [node.node_id for node in hosted]
    shop, clock = Shop(), Clock()
    patient = Patient(db, clock)
    collected = [0]

    def serverapp(grid: DbGrid, numbers: Iterator[int]) -> None:
        number = next(numbers)
        state = Checkpoint(round=number, state=b"", objects=frozenset(), metrics={}, next_sequence=number + 1)
        patient.write(lambda wanted: grid.push(act.push(*nodes, sequence=number, objects=wanted)))
        patient.write(lambda wanted: grid.commit_round(replace(state, objects=wanted)))
        if number + 1 == PUSHES:
            shop.done.set()

    def answer(lease: Lease, wanted: frozenset[ObjectHash]) -> None:
        fleet.submit([act.reply(lease, objects=wanted)])

    def supernode() -> None:
        for lease in act.claim(fleet, hosted, per_node=2):
            patient.write(partial(answer, lease))

    def collector() -> None:
        clock.let_an_hour_pass(db)
        with db.transaction() as tx:
            collected[0] += collection.sweep(tx).objects

    for _ in range(2):
        shop.staff(partial(serverapp, doors.grid()[0], itertools.count()))
        shop.staff(supernode)
        shop.staff(collector)
    shop.open()
    assert collected[0] > 0
    assert [found.broken for found in verify.run(db, payloads=True) if not found.holds] == []
