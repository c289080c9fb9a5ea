"""Collection: what nothing refers to goes, exactly that, and never under a push."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from flq.errors import LinkError, ObjectCorrupt, ObjectsMissing, ObjectUnknown
from flq.link import checkpoints, collection, objects, stores, verify
from flq.link.collection import Collected
from flq.link.database import Database
from flq.wire.ids import ObjectHash
from flq.wire.objects import CHUNK_BYTES
from flq.wire.status import Outcome
from tests.integration import link_acts as act
from tests.integration.link_acts import Doors
from tests.integration.used import Used, checkpoint, store
from tests.waiting import eventually


def put(db: Database, size: int = 100) -> ObjectHash:
    data = os.urandom(size)
    objects.put(db, act.object_of(data), memoryview(data))
    return act.object_of(data)


def pass_pins(db: Database) -> None:
    """An hour later."""
    with db.connection() as connection:
        connection.execute("UPDATE flq_state.object_pin SET pinned_until = pinned_until - interval '2 hours'")


def present(db: Database) -> set[bytes]:
    with db.connection() as connection:
        return {bytes(name) for (name,) in connection.execute("SELECT object_hash FROM flq_state.object")}


def in_order(db: Database) -> bool:
    return all(found.holds for found in verify.run(db))


def test_what_is_pinned_or_referred_to_stays_and_the_rest_goes(doors: Doors, db: Database):
    grid, _ = doors.grid()
    pinned, asked, left, kept = put(db), put(db), put(db, 3 * CHUNK_BYTES), put(db)
    grid.put_artifact("kept", kept)
    assert collection.collect(db) == Collected(0, 0, 0)
    pass_pins(db)
    with db.connection() as connection:
        connection.execute(
            "UPDATE flq_state.object_pin SET pinned_until = 'infinity' WHERE object_hash = %s", [bytes(pinned)]
        )
    assert objects.missing(db, [asked]) == frozenset()
    freed = collection.collect(db)
    assert (freed.objects, freed.size) == (1, 3 * CHUNK_BYTES)
    assert present(db) == {pinned, asked, kept}
    assert objects.missing(db, [left]) == {left}
    assert in_order(db)


def test_an_artifact_that_is_replaced_leaves_its_object_to_the_collector(doors: Doors, db: Database):
    grid, _ = doors.grid()
    before, after = put(db), put(db)
    grid.put_artifact("model", before)
    pass_pins(db)
    assert collection.collect(db).objects == 1  # `after`, which nothing refers to yet
    with pytest.raises(ObjectsMissing):
        grid.put_artifact("model", after)
    after = put(db)
    grid.put_artifact("model", after)
    assert collection.collect(db).objects == 1
    assert present(db) == {after}
    assert in_order(db)


def test_a_push_that_holds_an_object_is_passed_by(doors: Doors, db: Database):
    grid, claim = doors.grid()
    name = put(db)
    pass_pins(db)
    with db.transaction() as pushing:
        objects.hold(pushing, [name])
        assert collection.collect(db) == Collected(0, 0, 0)
        checkpoints.hold_attempt(pushing, claim.run.run_id, claim.token)
    grid.put_artifact("model", name)
    assert collection.collect(db).objects == 0
    assert present(db) == {name}
    assert in_order(db)


def test_a_push_behind_the_collector_is_told_what_is_missing(doors: Doors, db: Database):
    (node,) = doors.fleet("a")[1]
    grid, _ = doors.grid()
    name = put(db)
    pass_pins(db)
    refused: list[bool] = []

    def push() -> None:
        try:
            grid.push(act.push(node.node_id, objects=frozenset({name})))
        except ObjectsMissing:
            refused.append(True)

    pushing = threading.Thread(target=push)
    with db.transaction() as collecting:
        assert collection.sweep(collecting).objects == 1
        pushing.start()
        blocked = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        with db.connection() as watching:
            eventually(lambda: watching.execute(blocked).rowcount, what="the push to wait")
    pushing.join(20)
    assert refused == [True]
    assert in_order(db)


def test_what_was_referred_to_between_the_two_looks_stays(doors: Doors, db: Database):
    grid, _ = doors.grid()
    name = put(db)
    pass_pins(db)
    with db.transaction() as tx:
        due = [row[0] for row in tx.execute(collection.SQL["due_pins"], {"limit": 10}).fetchall()]
        grid.put_artifact("model", name)
        locked = tx.execute(collection.SQL["still_unreferenced"], {"hashes": due, "limit_bytes": 1}).fetchall()
    assert locked == []
    assert in_order(db)


def test_a_sweep_is_bounded_by_objects_and_by_bytes(db: Database):
    for _ in range(5):
        put(db, 1000)
    pass_pins(db)
    with db.transaction() as tx:
        assert collection.sweep(tx, limit=2).objects == 2
    with db.transaction() as tx:
        assert collection.sweep(tx, limit_bytes=1500).objects == 2
    assert collection.collect(db).objects == 1


def test_a_reference_that_goes_while_its_pin_is_dropped_leaves_a_pin(doors: Doors, db: Database):
    """The collector drops the pin of an object that is referred to; the reference must not go at the same moment."""
    grid, _ = doors.grid()
    name, other = put(db), put(db)
    grid.put_artifact("model", name)
    pass_pins(db)
    replacing = threading.Thread(target=lambda: grid.put_artifact("model", other))
    with db.transaction() as tx:
        collection.sweep(tx, limit_bytes=0)
        replacing.start()
        blocked = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        with db.connection() as watching:
            eventually(lambda: watching.execute(blocked).rowcount, what="the artifact to wait")
    replacing.join(20)
    assert in_order(db)
    collection.collect(db)
    assert name not in present(db)


def test_uploads_that_were_broken_off_are_kept_for_a_day(db: Database, tmp_path: Path):
    data = os.urandom(2 * CHUNK_BYTES)
    name = act.object_of(data)
    with db.connection() as connection, connection.transaction():
        stores._touch(connection, name, None)
        stores.insert(connection, name, memoryview(data), [1])
    done = put(db)
    with db.transaction() as tx:
        assert collection.sweep_uploads(tx) == 0
        tx.execute("UPDATE flq_state.object_upload SET touched_at = touched_at - interval '2 days'")
        stores._touch(tx, done, None)
        assert collection.sweep_uploads(tx) == 1
        assert tx.execute("SELECT count(*) FROM flq_state.object_chunk").fetchone() == (1,)
    assert in_order(db)


def test_an_upload_whose_chunks_are_collected_under_it_begins_again(db: Database, monkeypatch: pytest.MonkeyPatch):
    data = os.urandom((stores.COMMIT_CHUNKS + 2) * CHUNK_BYTES)
    name = act.object_of(data)
    inserted = stores.insert
    swept: list[int] = []

    def insert_and_collect(tx, object_hash, content, sequences):
        inserted(tx, object_hash, content, sequences)
        if sequences[-1] == len(data) // CHUNK_BYTES - 1 and not swept:
            with db.transaction() as other:
                swept.append(collection.sweep_uploads(other, age=0))  # the row is locked by the upload
            with db.connection() as other:
                other.execute("DELETE FROM flq_state.object_chunk WHERE sequence = 0")

    monkeypatch.setattr(stores, "insert", insert_and_collect)
    objects.put(db, name, memoryview(data))
    assert swept == [0]
    into = bytearray(len(data))
    objects.read(db, name, memoryview(into))
    assert into == data
    assert in_order(db)


def test_a_committed_round_releases_what_it_has_sent_and_received(doors: Doors, db: Database):
    used = Used(doors, db)
    grid, claim = doors.grid()
    for number in range(6):
        used.round(grid, claim, number)
        pass_pins(db)
        collection.collect(db)
        assert len(present(db)) == min(number + 1, 3)  # the newest three checkpoints
    held = grid.last_checkpoint()
    assert held is not None
    assert (held.round, len(held.objects), held.state) == (5, 1, b"state")
    with db.connection() as connection:
        states = connection.execute("SELECT round FROM flq_state.checkpoint WHERE state IS NOT NULL ORDER BY round")
        assert [number for (number,) in states] == [3, 4, 5]
    assert in_order(db)


@pytest.mark.parametrize(("column", "objects_left"), [("keep_checkpoints = 0", 6), ("keep_replies = true", 3 + 6 * 3)])
def test_a_run_may_keep_its_checkpoints_or_its_replies(doors: Doors, db: Database, column: str, objects_left: int):
    used = Used(doors, db)
    grid, claim = doors.grid()
    with db.connection() as connection:
        connection.execute(f"UPDATE flq_state.run SET {column}".encode())
    for number in range(6):
        used.round(grid, claim, number)
    pass_pins(db)
    collection.collect(db)
    assert len(present(db)) == objects_left
    assert in_order(db)


def test_pushes_behind_the_commit_keep_their_payloads(doors: Doors, db: Database):
    used = Used(doors, db)
    grid, claim = doors.grid()
    used.round(grid, claim, 0)
    ahead = store(grid)
    grid.push(act.push(*used.nodes, sequence=5, objects=frozenset({ahead})))
    grid.commit_round(checkpoint(1, frozenset(), 5))
    pass_pins(db)
    collection.collect(db)
    assert ahead in present(db)
    used.end(claim, Outcome.COMPLETED)
    with db.transaction() as tx:
        assert collection.sweep_runs(tx) == 1
        assert collection.sweep_runs(tx) == 0
    collection.collect(db)
    assert ahead not in present(db)
    assert in_order(db)


@pytest.fixture
def directory(db: Database, tmp_path: Path) -> Path:
    stores.choose(db, tmp_path / "objects")
    return tmp_path / "objects"


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES + 1, 20 * CHUNK_BYTES + 17])
def test_a_directory_stores_objects_too(db: Database, directory: Path, size: int):
    data = os.urandom(size)
    name = act.object_of(data)
    objects.put(db, name, memoryview(data))
    objects.put(db, name, memoryview(data))
    assert objects.missing(db, [name]) == frozenset()
    assert objects.size(db, name) == size
    into = bytearray(size)
    objects.read(db, name, memoryview(into))
    assert into == data
    (path,) = files(directory)
    assert path.read_bytes() == data
    with db.connection() as connection:
        assert connection.execute("SELECT count(*) FROM flq_state.object_chunk").fetchone() == (0,)
    assert in_order(db)


def test_each_object_is_read_where_it_was_stored(db: Database, directory: Path):
    there = put(db)
    stores.choose(db, None)
    here = put(db)
    assert len(files(directory)) == 1
    assert objects.missing(db, [here, there]) == frozenset()
    for name in (here, there):
        objects.read(db, name, memoryview(bytearray(100)))
    pass_pins(db)
    assert collection.collect(db).objects == 2
    assert files(directory) == []


def test_a_lost_file_is_missing_and_can_be_stored_again(doors: Doors, db: Database, directory: Path):
    grid, _ = doors.grid()
    data = os.urandom(100)
    name = act.object_of(data)
    grid.put(name, memoryview(data))
    grid.put_artifact("model", name)
    (path,) = files(directory)
    path.unlink()
    assert objects.missing(db, [name]) == {name}
    with pytest.raises(ObjectUnknown, match="is not in"):
        objects.read(db, name, memoryview(bytearray(100)))
    assert [found.invariant for found in verify.run(db) if not found.holds] == [verify.FILES]
    grid.put(name, memoryview(data))
    objects.read(db, name, memoryview(bytearray(100)))
    assert in_order(db)


def test_drafts_of_a_directory_are_removed_after_a_day(db: Database, directory: Path):
    draft = directory / stores.DRAFTS / "left"
    draft.write_bytes(b"half")
    with db.transaction() as tx:
        assert collection.sweep_uploads(tx) == 0
        os.utime(draft, (0, 0))
        assert collection.sweep_uploads(tx) == 1
    assert not draft.exists()


def test_a_directory_that_cannot_be_used_is_named(db: Database, directory: Path):
    name = put(db, 100)
    (path,) = files(directory)
    path.write_bytes(b"x" * 99)
    with pytest.raises(ObjectCorrupt, match="99 bytes"):
        objects.read(db, name, memoryview(bytearray(100)))
    path.unlink()
    path.mkdir()
    with pytest.raises(LinkError, match="cannot be used"):
        objects.read(db, name, memoryview(bytearray(100)))
    pass_pins(db)
    with pytest.raises(LinkError, match="cannot be used"):
        collection.collect(db)
    path.rmdir()
    assert collection.collect(db).objects == 1
    drafts = directory / stores.DRAFTS
    drafts.rmdir()
    drafts.write_bytes(b"no folder")
    with pytest.raises(LinkError, match="cannot be used"):
        put(db)
    with db.transaction() as tx, pytest.raises(LinkError, match="cannot be used"):
        collection.sweep_uploads(tx)
    drafts.unlink()
    with db.transaction() as tx:
        assert collection.sweep_uploads(tx) == 0
    put(db)
    assert in_order(db)


def test_a_file_of_the_wrong_size_is_found(doors: Doors, db: Database, directory: Path):
    grid, _ = doors.grid()
    grid.put_artifact("model", store(grid, 100))
    (path,) = files(directory)
    path.write_bytes(b"x" * 99)
    assert [found.broken for found in verify.run(db) if not found.holds] == [(f"{path} has 99 of 100 bytes",)]


def test_a_file_that_a_collection_takes_under_an_upload_is_written_again(
    db: Database, directory: Path, monkeypatch: pytest.MonkeyPatch
):
    written = stores.DirectoryStore._write_file
    taken: list[Path] = []

    def write_and_lose(store: stores.DirectoryStore, path: Path, content: memoryview) -> None:
        written(store, path, content)
        if not taken:
            path.unlink()
            taken.append(path)

    monkeypatch.setattr(stores.DirectoryStore, "_write_file", write_and_lose)
    name = put(db)
    assert files(directory) == taken
    objects.read(db, name, memoryview(bytearray(100)))


def test_an_object_that_is_collected_again_and_again_is_given_up(db: Database, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stores.ChunkStore, "write", lambda *_: False)
    with pytest.raises(LinkError, match="again and again"):
        put(db)
