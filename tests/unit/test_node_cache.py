"""The object cache and the files of client state."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from flq.errors import CodecError, ObjectCorrupt, ObjectUnknown
from flq.node.cache import ObjectCache
from flq.node.state import KEPT_VERSIONS, ClientStates
from flq.node.state_file import StateFile, write_state
from flq.node.tasks import HeldTask
from flq.wire.codec import encode
from flq.wire.fleet import Lease, Reply, TaskKey
from flq.wire.ids import BatchId, NodeId, ObjectHash, RunId, TaskId
from flq.wire.records import ArrayRecord, ConfigRecord, RecordDict
from flq.wire.status import ResultStatus


class Store:
    """Objects, by hash."""

    def __init__(self, *contents: bytes) -> None:
        self.contents = {named(content): content for content in contents}
        self.reads = 0

    def read(self, object_hash: ObjectHash, into: memoryview) -> None:
        self.reads += 1
        if object_hash not in self.contents:
            raise ObjectUnknown
        into[:] = self.contents[object_hash]

    def size(self, object_hash: ObjectHash) -> int:
        return len(self.contents[object_hash])

    def missing(self, hashes: Iterable[ObjectHash]) -> frozenset[ObjectHash]:
        raise NotImplementedError

    def put(self, object_hash: ObjectHash, data: memoryview) -> None:
        raise NotImplementedError


def named(content: bytes) -> ObjectHash:
    return ObjectHash(hashlib.sha256(content).digest())


ONE, TWO, THREE = b"1" * 100, b"2" * 100, b"3" * 100


def fetch(cache: ObjectCache, store: Store, content: bytes) -> None:
    for object_hash in cache.pin([named(content)]):
        cache.fetch(store, object_hash, len(content))


def test_least_recently_used_objects_go(tmp_path):
    store = Store(ONE, TWO, THREE)
    cache = ObjectCache(tmp_path, 200)
    for content in (ONE, TWO, ONE, THREE):
        fetch(cache, store, content)
        cache.unpin([named(content)])
    assert store.reads == 3
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {ONE, THREE}


def test_pinned_objects_stay(tmp_path):
    store = Store(ONE, TWO, THREE)
    cache = ObjectCache(tmp_path, 100)
    for content in (ONE, TWO, THREE):
        fetch(cache, store, content)
    assert len(list(tmp_path.iterdir())) == 3
    cache.unpin([named(ONE), named(TWO)])
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [THREE]


def test_a_fetch_that_fails_leaves_nothing(tmp_path):
    cache = ObjectCache(tmp_path, 1000)
    with pytest.raises(ObjectUnknown):
        fetch(cache, Store(), ONE)
    assert not list(tmp_path.iterdir())


def test_an_empty_object(tmp_path):
    cache = ObjectCache(tmp_path, 1000)
    fetch(cache, Store(b""), b"")
    assert cache.path(named(b"")).read_bytes() == b""
    with pytest.raises(ObjectCorrupt):
        cache.fetch(Store(), named(ONE), 0)


def test_files_of_an_earlier_process_are_checked_before_they_are_used(tmp_path):
    store = Store(ONE, TWO)
    earlier = ObjectCache(tmp_path, 1000)
    for content in (ONE, TWO):
        fetch(earlier, store, content)
    earlier.path(named(TWO)).write_bytes(b"x" * 100)
    (tmp_path / ".cut-off").touch()
    later = ObjectCache(tmp_path, 1000)
    assert not (tmp_path / ".cut-off").exists()
    for content in (ONE, TWO):
        fetch(later, store, content)
    assert store.reads == 3
    assert later.path(named(TWO)).read_bytes() == TWO
    assert not later.pin([named(ONE), named(TWO)])


def test_a_smaller_limit_holds_from_the_start(tmp_path):
    store = Store(ONE, TWO)
    cache = ObjectCache(tmp_path, 1000)
    for content in (ONE, TWO):
        fetch(cache, store, content)
    ObjectCache(tmp_path, 150)
    assert len(list(tmp_path.iterdir())) == 1


# --- files of client state


def some_state() -> RecordDict:
    return RecordDict(
        {
            "c": ConfigRecord({"a": b"1"}),
            "large": ArrayRecord([np.arange(20_000.0), np.ones(30_001)]),
            "small": ArrayRecord([np.arange(3.0)]),
        }
    )


def test_state_there_and_back(tmp_path):
    path = tmp_path / "deep" / "1-2.staged"
    write_state(path, encode(some_state()))
    with StateFile(path) as file:
        found = file.read()
        assert found == some_state()
        mapped = found.array_records["large"]["0"].numpy()
        mapped += 1  # private to whoever has read it
    with StateFile(path) as file:
        again = file.read()
        assert again.array_records["large"]["0"].numpy()[0] == 0
        touched_too_late = file.read().array_records["large"]["1"]
    with pytest.raises(CodecError, match="after its task has ended"):
        touched_too_late.numpy()


@pytest.mark.parametrize("size", [0, 5, 24, 60, 500, 5000, 200_000])
def test_truncated_state_is_refused(tmp_path, size):
    path = tmp_path / "1-2.staged"
    write_state(path, encode(some_state()))
    with path.open("rb+") as file:
        file.truncate(size)
    with pytest.raises(CodecError):
        StateFile(path)


# --- versions of client state


def held(task: int, *, node: str = "node", token: int = 9) -> HeldTask:
    key = TaskKey(node_id=NodeId(2), run_id=RunId(1), task_id=TaskId(task), batch_id=BatchId(1), token=token)
    lease = Lease(key=key, attempt=1, kind="train", group="", created_at=0, deadline=1, manifest=b"")
    return HeldTask(lease, node)


def stage(states: ClientStates, task: HeldTask, text: str = "") -> Path:
    path = Path(states.staging(task))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def reply(task: HeldTask) -> Reply:
    return Reply(
        key=task.key,
        status=ResultStatus.OK,
        manifest=b"manifest",
        objects=frozenset({named(ONE)}),
        metrics={"m.loss": float("inf")},
        started_at=datetime.now(UTC),
        ended_at=datetime.now(UTC),
    )


def test_a_task_starts_from_the_newest_version_of_an_earlier_task(tmp_path):
    states = ClientStates(tmp_path)
    assert states.base(held(3)) is None
    for task in (3, 7):
        states.promote(stage(states, held(task), str(task)))
    for found in (states, ClientStates(tmp_path)):
        bases = [found.base(held(task)) for task in (3, 4, 7, 8)]
        assert [base and base.read_text() for base in bases] == [None, "3", "3", "7"]


def test_old_versions_go(tmp_path):
    states = ClientStates(tmp_path)
    for task in range(6):
        states.promote(stage(states, held(task)))
    assert len(list(tmp_path.glob("*/*/*"))) == KEPT_VERSIONS


def test_odd_names_stay_inside(tmp_path):
    states = ClientStates(tmp_path)
    for name in ("..", ".", "a/b", "é"):
        path = Path(states.staging(held(1, node=name)))
        assert path.parent.parent == tmp_path / "1"
        assert ".." not in path.parts
        states = ClientStates(tmp_path)


def test_unsettled_replies_are_found_by_the_next_process(tmp_path):
    states = ClientStates(tmp_path)
    noted, unnoted, settled = held(1), held(2), held(3)
    for task in (noted, unnoted, settled):
        stage(states, task)
    for task in (noted, settled):
        states.note_reply(Path(states.staging(task)), reply(task))
    states.promote(Path(states.staging(settled)))
    ((staged, kept),) = ClientStates(tmp_path).unsettled()
    assert (str(staged), kept.key, kept.manifest) == (states.staging(noted), noted.key, b"manifest")
    assert (kept.objects, kept.metrics) == (frozenset({named(ONE)}), {"m.loss": float("inf")})
    assert not Path(states.staging(unnoted)).exists()


def test_a_damaged_reply_is_dropped(tmp_path):
    states = ClientStates(tmp_path)
    path = stage(states, held(1))
    path.with_suffix(".reply").write_bytes(b"flq1 but not really")
    assert ClientStates(tmp_path).unsettled() == []
    assert not path.exists()
