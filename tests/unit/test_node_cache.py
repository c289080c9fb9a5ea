"""The object cache."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterable

import pytest

from flq.errors import ObjectCorrupt, ObjectUnknown
from flq.node.cache import ObjectCache
from flq.wire.ids import ObjectHash


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


def test_what_a_dead_process_was_fetching_goes_and_what_a_living_one_is_fetching_stays(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    for pid in (ended.pid, os.getpid()):
        (tmp_path / f".{named(ONE).hex()}.{pid}.1").touch()
    ObjectCache(tmp_path, 1000)
    assert [path.name for path in tmp_path.iterdir()] == [f".{named(ONE).hex()}.{os.getpid()}.1"]
