"""Arrays for bulk statements in PostgreSQL's binary form, built in one go.

psycopg's own dumper writes lists element by element, as text: in a flush of a thousand results it took longer than
the server did.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeVar

import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import Dumper
from psycopg.pq import Format

if TYPE_CHECKING:
    import numpy as np

_HEADER: Final = struct.Struct("!5i")  # dimensions, has nulls, element type, length, lower bound
_LENGTH: Final = struct.Struct("!i")
_EMPTY: Final = struct.Struct("!3i")
_SMALLINT: Final = struct.Struct("!h")
_NULL: Final = _LENGTH.pack(-1)
_FEW: Final = 32  # up to so many cells, numpy takes longer to begin than to do it
_INT2, _INT8, _FLOAT8, _TEXT, _BYTEA = 21, 20, 701, 25, 17


T = TypeVar("T")


class _Array(bytes):
    """An array in binary form; the class tells its type."""

    __slots__ = ()


class Bigints(_Array):
    """`bigint[]`."""


class Smallints(_Array):
    """`smallint[]`."""


class Doubles(_Array):
    """`double precision[]`."""


class Texts(_Array):
    """`text[]`."""


class Byteas(_Array):
    """`bytea[]`."""


def bigints(values: Sequence[int]) -> Bigints:
    """`values` as `bigint[]`."""
    return Bigints(_fixed(values, _INT8, "q"))


def doubles(values: Sequence[float]) -> Doubles:
    """`values` as `double precision[]`."""
    return Doubles(_fixed(values, _FLOAT8, "d"))


def smallints(values: Sequence[int | None]) -> Smallints:
    """`values` as `smallint[]`, with NULLs."""
    return Smallints(_varying(values, _INT2, _SMALLINT.pack))


def texts(values: Sequence[str | None]) -> Texts:
    """`values` as `text[]`, with NULLs."""
    return Texts(_varying(values, _TEXT, str.encode))


def byteas(values: Sequence[bytes | None]) -> Byteas:
    """`values` as `bytea[]`, with NULLs."""
    return Byteas(_varying(values, _BYTEA, bytes))


def _fixed(values: Sequence[float], element: int, kind: str) -> bytes:
    if not values:
        return _EMPTY.pack(0, 0, element)
    header = _HEADER.pack(1, 0, element, len(values), 1)
    return header + (_few(values, kind) if len(values) <= _FEW else _many(values, kind))


def _few(values: Sequence[float], kind: str) -> bytes:
    cells = [8, 8] * len(values)
    cells[1::2] = values  # type: ignore[assignment]  # a list of what is packed, whole or not
    return _cells(kind, len(values)).pack(*cells)


@lru_cache(maxsize=2 * _FEW)
def _cells(kind: str, count: int) -> struct.Struct:
    return struct.Struct("!" + f"i{kind}" * count)


def _many(values: Sequence[float], kind: str) -> bytes:
    import numpy as np  # commands that show a list need none, and it takes 0.1 s

    cells = np.empty(len(values), _cell_type(kind))
    cells["length"] = 8
    cells["value"] = values
    return cells.tobytes()


@lru_cache
def _cell_type(kind: str) -> np.dtype[np.void]:
    import numpy as np

    return np.dtype([("length", ">i4"), ("value", np.dtype(kind).newbyteorder(">"))])


def _varying(values: Sequence[T | None], element: int, packed: Callable[[T], bytes]) -> bytes:
    if not values:
        return _EMPTY.pack(0, 0, element)
    header = _HEADER.pack(1, int(None in values), element, len(values), 1)
    first = values[0]
    if values.count(first) == len(values):  # as most columns of a flush are
        return header + _cell(None if first is None else packed(first)) * len(values)
    return header + b"".join([_cell(None if value is None else packed(value)) for value in values])


def _cell(value: bytes | None) -> bytes:
    return _NULL if value is None else _LENGTH.pack(len(value)) + value


class _Binary(Dumper):
    format = Format.BINARY

    def dump(self, obj: bytes) -> Buffer:
        return obj


for _kind, _oid in ((Bigints, 1016), (Smallints, 1005), (Doubles, 1022), (Texts, 1009), (Byteas, 1001)):
    psycopg.adapters.register_dumper(_kind, type(f"{_kind.__name__}Dumper", (_Binary,), {"oid": _oid}))
