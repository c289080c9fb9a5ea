"""An upload that its client or the server does not survive: nobody sees half an object, and another one goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flq.errors import Unreachable
from flq.link import objects, stores
from flq.link.database import Database
from flq.local.process import python, python_environment
from flq.wire.ids import ObjectHash
from flq.wire.objects import CHUNK_BYTES
from tests.concurrency.test_crashes import Server, broken, server
from tests.integration import link_acts as act
from tests.waiting import eventually

__all__ = ["server"]

CHUNKS = stores.COMMIT_CHUNKS + 4
HELD = CHUNKS - 2


@contextmanager
def held_up(db: Database, name: ObjectHash) -> Iterator[None]:
    """Nobody can store one of the last chunks: an upload waits there, its first transaction committed."""
    with db.connection() as connection:
        connection.execute("BEGIN")
        connection.execute(
            "INSERT INTO flq_state.object_chunk (object_hash, sequence, data) VALUES (%s, %s, '')", [bytes(name), HELD]
        )
        try:
            yield
        finally:
            if not connection.closed and not connection.broken:
                connection.execute("ROLLBACK")


def waits(db: Database) -> bool:
    with db.connection() as connection:
        found = connection.execute(
            "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return bool(found.rowcount)


def stored(db: Database) -> int:
    with db.connection() as connection:
        row = connection.execute("SELECT count(*) FROM flq_state.object_chunk").fetchone()
    return row[0] if row else 0


def goes_on(db: Database, name: ObjectHash, data: bytes) -> None:
    """What was committed is there and no object yet; another upload stores the rest."""
    assert stored(db) == stores.COMMIT_CHUNKS
    assert objects.missing(db, [name]) == {name}
    assert broken(db) == []
    objects.put(db, name, memoryview(data))
    into = bytearray(len(data))
    objects.read(db, name, memoryview(into))
    assert into == data
    assert broken(db) == []


def test_a_client_that_is_killed_in_mid_upload(db: Database, dsn: str, tmp_path: Path):
    data = os.urandom(CHUNKS * CHUNK_BYTES - 7)
    name = act.object_of(data)
    (tmp_path / "file").write_bytes(data)
    command = python("-m", "tests.concurrency.uploader", str(tmp_path / "file"))
    with held_up(db, name):
        client = subprocess.Popen(command, env=python_environment({"FLQ_DSN": dsn}))
        try:
            eventually(lambda: stored(db) == stores.COMMIT_CHUNKS and waits(db), what="the upload's second transaction")
        finally:
            client.send_signal(signal.SIGKILL)
            client.wait()
    goes_on(db, name, data)


def test_a_server_that_falls_over_in_mid_upload(server: Server):
    data = os.urandom(CHUNKS * CHUNK_BYTES - 7)
    name = act.object_of(data)
    db, holding = (Database(server.dsn, application="flq test") for _ in range(2))
    told: list[Exception] = []

    def upload() -> None:
        try:
            objects.put(db, name, memoryview(data))
        except Unreachable as exc:
            told.append(exc)

    uploading = threading.Thread(target=upload)
    try:
        with held_up(holding, name):
            uploading.start()
            eventually(lambda: stored(db) == stores.COMMIT_CHUNKS and waits(db), what="the upload's second transaction")
            server.fall_over()
    except Unreachable:
        pass  # the connection that held it up went with the server
    uploading.join(30)
    assert len(told) == 1
    goes_on(db, name, data)
    db.close()
    holding.close()
