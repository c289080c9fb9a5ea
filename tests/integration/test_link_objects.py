"""Objects, bundles, artifacts, logs and queries, on a real Postgres."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

import pytest

from flq.errors import ArtifactUnknown, ObjectCorrupt, ObjectUnknown, QueryError, UsageError
from flq.link import logs, objects, runs, stores
from flq.link.control import DbControl
from flq.link.database import Database
from flq.wire.objects import CHUNK_BYTES
from flq.wire.runs import FeedCursor, LogLine
from tests.integration import link_acts as act
from tests.integration.link_acts import Doors


@pytest.fixture
def control(dsn: str):
    found = DbControl(dsn)
    yield found
    found.close()


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 70 * CHUNK_BYTES + 17])
def test_an_object_comes_back_as_it_was(db: Database, size: int):
    data = os.urandom(size)
    name = act.object_of(data)
    assert objects.missing(db, [name]) == {name}
    objects.put(db, name, memoryview(data))
    objects.put(db, name, memoryview(data))
    assert objects.missing(db, [name]) == frozenset()
    assert objects.size(db, name) == size
    into = bytearray(size)
    objects.read(db, name, memoryview(into))
    assert into == data


def test_an_interrupted_upload_is_not_there_and_goes_on(db: Database):
    data = os.urandom((stores.COMMIT_CHUNKS + 3) * CHUNK_BYTES)
    name = act.object_of(data)
    with db.connection() as connection, connection.transaction():
        stores._touch(connection, name, None)
        stores.insert(connection, name, memoryview(data), [0, 2])
    assert objects.missing(db, [name]) == {name}
    with pytest.raises(ObjectUnknown):
        objects.read(db, name, memoryview(bytearray(len(data))))
    objects.put(db, name, memoryview(data))
    into = bytearray(len(data))
    objects.read(db, name, memoryview(into))
    assert into == data


def test_what_is_corrupt_is_neither_stored_nor_read(db: Database):
    data = os.urandom(2 * CHUNK_BYTES)
    name = act.object_of(data)
    with pytest.raises(ObjectCorrupt):
        objects.put(db, name, memoryview(data[:-1]))
    objects.put(db, name, memoryview(data))
    with pytest.raises(ObjectCorrupt, match="bytes"):
        objects.read(db, name, memoryview(bytearray(5)))
    with db.connection() as connection:
        connection.execute("UPDATE flq_state.object_chunk SET data = set_byte(data, 7, 255 - get_byte(data, 7))")
    with pytest.raises(ObjectCorrupt):
        objects.read(db, name, memoryview(bytearray(len(data))))


def test_a_large_object_that_lost_a_chunk_or_a_byte_is_not_read(db: Database):
    data = os.urandom(9 * CHUNK_BYTES)
    name = act.object_of(data)
    objects.put(db, name, memoryview(data))
    into = memoryview(bytearray(len(data)))
    with db.connection() as connection:
        connection.execute(
            "UPDATE flq_state.object_chunk SET data = set_byte(data, 7, 255 - get_byte(data, 7)) WHERE sequence = 8"
        )
    with pytest.raises(ObjectCorrupt, match="hash"):
        objects.read(db, name, into)
    with db.connection() as connection:
        connection.execute("DELETE FROM flq_state.object_chunk WHERE sequence = 4")
    with pytest.raises(ObjectCorrupt, match="of 9437184 bytes"):
        objects.read(db, name, into)


def test_artifacts_are_listed_replaced_and_read(doors: Doors, control: DbControl):
    grid, claim = doors.grid()
    for data in (b"old model", b"the new model"):
        grid.put(act.object_of(data), memoryview(data))
        grid.put_artifact("model.npz", act.object_of(data))
    (row,) = control.artifacts(claim.run.name)
    assert (row.name, row.size) == ("model.npz", 13)
    into = bytearray(row.size)
    control.artifact(claim.run.name, "model.npz", memoryview(into))
    assert into == b"the new model"
    with pytest.raises(ArtifactUnknown) as caught:
        control.artifact(claim.run.name, "modle.npz", memoryview(into))
    assert "model.npz" in (caught.value.hint or "")
    with pytest.raises(UsageError):
        grid.put_artifact("../evil", act.object_of(b"old model"))


def line(text: str, *, seconds: float = 0, source: str = "serverapp") -> LogLine:
    return LogLine(at=datetime.now(UTC) + timedelta(seconds=seconds), source=source, level="INFO", text=text)


def test_logs_are_read_once_each_over_pages_and_late_commits(db: Database):
    run_id = runs.submit(db, act.submission())
    logs.append(db, [(run_id, line(f"line {n}")) for n in range(10)])
    other = runs.submit(db, act.submission())
    logs.append(db, [(other, line("not yours"))])
    texts: list[str] = []
    cursor = FeedCursor()

    def look() -> int:
        nonlocal cursor
        page = logs.read(db, run_id, cursor, limit=4)
        cursor = page.cursor
        texts.extend(found.text for found in page.lines)
        return len(page.lines)

    with db.transaction() as slow:
        slow.execute(
            logs.SQL["append_logs"],
            {"run_ids": [run_id], "ats": [datetime.now(UTC)], "sources": ["a"], "levels": ["INFO"], "texts": ["late"]},
        )
        logs.append(db, [(run_id, line("early \0 bird"))])
        while look():
            pass
        assert "late" not in texts
    while look():
        pass
    assert sorted(texts) == sorted([*(f"line {n}" for n in range(10)), "early \N{SYMBOL FOR NULL} bird", "late"])


def test_queries_read_the_views_and_nothing_else(control: DbControl):
    control.submit(act.submission("my-run"))
    assert control.query("select run, status from flq.runs").rows == (("my-run", "pending"),)
    assert control.query("select run from runs where run like 'my%' and app = $1", ["test-app"]).rows == (("my-run",),)
    for statement, why in (
        ("select * from flq_state.run", "permission denied"),
        ("delete from flq.runs", "cannot"),
        ("select 1; drop schema flq cascade", "multiple"),
        ("create table x (y int)", "read-only|permission"),
        ("selec 1", "syntax"),
        ("set role flq", "no rows"),
    ):
        with pytest.raises(QueryError, match=why):
            control.query(statement)
    assert control.query("select count(*) from runs").rows == ((1,),)


@pytest.mark.parametrize("change", ["data || 'x'", "substr(data, 2)"])
def test_a_connection_survives_an_object_of_the_wrong_length(db: Database, change: str):
    data = os.urandom(3 * CHUNK_BYTES)
    name = act.object_of(data)
    objects.put(db, name, memoryview(data))
    with db.connection() as connection:
        connection.execute(f"UPDATE flq_state.object_chunk SET data = {change} WHERE sequence = 1".encode())
    for _ in range(3):
        with pytest.raises(ObjectCorrupt, match="bytes"):
            objects.read(db, name, memoryview(bytearray(len(data))))
    assert objects.size(db, name) == len(data)
