"""One version of a node's client state, as a file: a manifest and the objects that it names, read without a copy.

prefix   magic, length of the manifest, number of objects
table    hash and size of each object
manifest
objects  each at the next multiple of the page size, so that each can be mapped by itself
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

from flq.errors import CodecError
from flq.wire.codec import Encoded, decode
from flq.wire.ids import ObjectHash
from flq.wire.records import RecordDict

_MAGIC = b"flqstat1"
_PREFIX = struct.Struct("<8sQQ")
_ENTRY = struct.Struct("<32sQ")


def write_state(path: Path, state: Encoded) -> None:
    """Write a version; its name appears when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".aside")
    views = dict(state.objects.items())
    with aside.open("wb") as file:
        file.write(_PREFIX.pack(_MAGIC, len(state.manifest), len(views)))
        file.writelines(_ENTRY.pack(object_hash, view.nbytes) for object_hash, view in views.items())
        file.write(state.manifest)
        for view in views.values():
            file.seek(_page(file.tell()))
            file.write(view)
    aside.replace(path)


class StateFile:
    """An open version. Its arrays are mapped when they are touched, privately: apps may write into them.

    Used as a context manager: arrays that were not touched by its end cannot be touched later.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        with contextlib.ExitStack() as stack:
            stack.callback(self._file.close)
            self.manifest, self._places = self._open()
            stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()

    def read(self) -> RecordDict:
        """The records. Raises `CodecError` if the file is damaged."""
        return decode(self.manifest, self._fetch)

    def _open(self) -> tuple[bytes, dict[ObjectHash, tuple[int, int]]]:
        total = os.fstat(self._file.fileno()).st_size
        prefix = self._file.read(_PREFIX.size)
        if len(prefix) < _PREFIX.size or not prefix.startswith(_MAGIC):
            raise CodecError(f"{self._file.name} is no client state")
        _magic, manifest_bytes, count = _PREFIX.unpack(prefix)
        end = _PREFIX.size + count * _ENTRY.size + manifest_bytes
        if end > total:
            raise CodecError(f"{self._file.name} is truncated")
        table = list(_ENTRY.iter_unpack(self._file.read(count * _ENTRY.size)))
        manifest = self._file.read(manifest_bytes)
        places = {}
        for object_hash, size in table:
            places[ObjectHash(object_hash)] = (_page(end), size)
            end = _page(end) + size
        if end > total:
            raise CodecError(f"{self._file.name} is truncated")
        return manifest, places

    def _fetch(self, object_hash: ObjectHash, size: int) -> memoryview:
        if self._file.closed:
            raise CodecError("the client state is touched after its task has ended: read arrays within the handler")
        offset, stored = self._places.get(object_hash, (0, -1))
        if stored != size:
            raise CodecError(f"{self._file.name} does not hold what its manifest names")
        return memoryview(mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_COPY, offset=offset))


def _page(offset: int) -> int:
    return -(-offset // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
