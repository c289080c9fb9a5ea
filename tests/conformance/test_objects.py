"""The object door, through each implementation: what goes in comes out, whatever its size."""

from __future__ import annotations

import hashlib
import os

import pytest

from flq.errors import ObjectCorrupt, ObjectUnknown
from flq.wire.ids import ObjectHash
from flq.wire.objects import CHUNK_BYTES
from tests.conformance.conftest import House


def hash_of(data: bytes) -> ObjectHash:
    return ObjectHash(hashlib.sha256(data).digest())


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 1, 66 * CHUNK_BYTES + 17])
def test_an_object_comes_back_as_it_was(house: House, size: int):
    grid, _ = house.grid()
    data = os.urandom(size)
    name = hash_of(data)
    assert grid.missing([name]) == {name}
    for _ in range(2):
        grid.put(name, memoryview(data))
    assert grid.missing([name]) == frozenset()
    assert grid.size(name) == size
    into = bytearray(size)
    grid.read(name, memoryview(into))
    assert into == data


def test_what_is_not_there_or_not_right_is_told(house: House):
    grid, _ = house.grid()
    data = os.urandom(100)
    with pytest.raises(ObjectUnknown):
        grid.size(hash_of(data))
    with pytest.raises(ObjectUnknown):
        grid.read(hash_of(data), memoryview(bytearray(100)))
    with pytest.raises(ObjectCorrupt):
        grid.put(hash_of(data), memoryview(data[1:]))
    assert grid.missing([hash_of(data)]) == {hash_of(data)}
    grid.put(hash_of(data), memoryview(data))
    with pytest.raises(ObjectCorrupt):
        grid.read(hash_of(data), memoryview(bytearray(99)))
