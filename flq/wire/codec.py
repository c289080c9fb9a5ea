"""The codec: a RecordDict as one manifest and the objects that it names, and back.

A manifest is laid out so that it can be read without a copy:

    prefix   24 bytes: magic, version, zero, length of the header, length of the manifest
    header   ASCII JSON: the records in order, with every value but the arrays' bytes
    buffers  the inline arrays in the order of the header, each at the next multiple of 64, zeros between

Arrays of up to 64 KiB stand inline, as long as those of a message stay below 1 MiB together, unless they are kept
`apart`; every other array is an object, known by the sha256 of its raw little-endian bytes. There are no offsets to
lie about: sizes follow from dtypes and shapes. The same records in the same order always give the same bytes, whether
their arrays were computed or received; a NaN in a metric comes back as the one NaN.

Whatever bytes `decode` is handed, it answers with records or with `CodecError`, and it allocates nothing that the
bytes do not cover. The content of objects is the business of `fetch`.
"""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from flq.errors import CodecError
from flq.wire.array import DTYPES, NUMPY_STYPE, Array
from flq.wire.ids import ObjectHash
from flq.wire.records import (
    INT_MAX,
    INT_MIN,
    ArrayRecord,
    ConfigRecord,
    MetricRecord,
    Record,
    RecordDict,
    check_key,
)

MAGIC = b"\x93FLQ"
VERSION = 1
ALIGNMENT = 64
INLINE_BYTES = 64 << 10
"""The largest array that stands inline."""
INLINE_TOTAL = 1 << 20
"""How much of a manifest inline arrays may take together."""
MAX_HEADER_BYTES = 64 << 20
MAX_ARRAY_BYTES = 1 << 42
MAX_DIMENSIONS = 64

_PREFIX = struct.Struct("<4sHHQQ")
_HASH_BYTES = 32
_KINDS: dict[str, type[Record]] = {"arrays": ArrayRecord, "metrics": MetricRecord, "config": ConfigRecord}
_KIND_NAMES = {kind: name for name, kind in _KINDS.items()}
_TAGS: dict[type, str] = {bool: "b", int: "i", float: "f", str: "s", bytes: "y"}
_TYPES = {tag: kind for kind, tag in _TAGS.items()}
_EMPTY_LIST = "l"
_ODD_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}

Fetch = Callable[[ObjectHash, int], memoryview]
"""Brings the object of a hash and a size into a buffer of the caller's own."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A message's content, encoded.

    The values of `objects` are read-only and no copies; those of received arrays are read when they are asked for.
    """

    manifest: bytes
    objects: Mapping[ObjectHash, memoryview]


class _ArrayBuffers(Mapping[ObjectHash, memoryview]):
    """The raw bytes of arrays, by hash."""

    def __init__(self, arrays: dict[ObjectHash, Array]) -> None:
        self._arrays = arrays

    def __getitem__(self, object_hash: ObjectHash) -> memoryview:
        return self._arrays[object_hash].buffer()

    def __iter__(self) -> Iterator[ObjectHash]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def encode(content: RecordDict) -> Encoded:
    """Encode a message's content.

    Raises `CodecError` if it does not fit the format's limits, `TypeError` if a list in it was changed into
    something that its record may not hold.
    """
    writer = _Writer()
    header = [[name, _KIND_NAMES[type(record)], writer.rows(record)] for name, record in content.items()]
    return Encoded(writer.manifest(header), _ArrayBuffers(writer.objects))


class _Writer:
    """Collects what stands inline and what does not."""

    def __init__(self) -> None:
        self.inline: list[memoryview] = []
        self.inline_bytes = 0
        self.objects: dict[ObjectHash, Array] = {}

    def rows(self, record: Record) -> list[list[Any]]:
        if isinstance(record, ArrayRecord):
            return [self._array_row(key, array) for key, array in record.items()]
        return [[key, *_tagged(record.plain(key))] for key in record]

    def _array_row(self, key: str, array: Array) -> list[Any]:
        row: list[Any] = [key, array.dtype, list(array.shape)]
        takes = _aligned(array.nbytes)
        if array.nbytes <= INLINE_BYTES and self.inline_bytes + takes <= INLINE_TOTAL and not array.apart:
            self.inline.append(array.buffer())
            self.inline_bytes += takes
            row.append(None)
        else:
            self.objects.setdefault(array.digest, array)
            row.append(array.digest.hex())
        if array.stype != NUMPY_STYPE:
            row += [array.stype, array.nbytes]
        return row

    def manifest(self, header: list[Any]) -> bytes:
        text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode("ascii")
        if len(text) > MAX_HEADER_BYTES:
            raise CodecError(
                f"the metrics and config of a message take {len(text)} bytes; at most {MAX_HEADER_BYTES} are possible",
                hint="put long lists and large byte strings into an ArrayRecord",
            )
        start = _aligned(_PREFIX.size + len(text)) if self.inline else _PREFIX.size + len(text)
        parts: list[bytes | memoryview] = [
            _PREFIX.pack(MAGIC, VERSION, 0, len(text), start + self.inline_bytes),
            text,
            bytes(start - _PREFIX.size - len(text)),
        ]
        for buffer in self.inline:
            parts += [buffer, bytes(_aligned(buffer.nbytes) - buffer.nbytes)]
        return b"".join(parts)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _tagged(value: Any) -> tuple[str, Any]:
    """A value with the letter of its type; a capital one for a list."""
    if not isinstance(value, list):
        return _TAGS[type(value)], _to_json(value)
    if not value:
        return _EMPTY_LIST, []
    return _TAGS[type(value[0])].upper(), [_to_json(item) for item in value]


def _to_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def decode(manifest: bytes, fetch: Fetch) -> RecordDict:
    """Read a message's content. Objects are fetched when their arrays are touched, not here.

    `fetch` MUST return a writable buffer of its own for each call; if it has another size than was asked for, the
    touch raises `CodecError`. Raises `CodecError` if the manifest is none.
    """
    content = RecordDict()
    for name, kind, fields in _parse(manifest):
        record: Any = kind()
        for key, field in fields.items():
            record[key] = _lazy(field, manifest, fetch) if isinstance(field, _ArrayField) else field
        content[name] = record
    return content


def object_sizes(manifest: bytes) -> dict[ObjectHash, int]:
    """The objects that a manifest names, with their sizes in bytes. Raises `CodecError`."""
    sizes: dict[ObjectHash, int] = {}
    for _, _, fields in _parse(manifest):
        for field in fields.values():
            if not isinstance(field, _ArrayField) or field.digest is None:
                continue
            if sizes.setdefault(field.digest, field.nbytes) != field.nbytes:
                _refuse("one object is announced with two sizes")
    return sizes


def metrics(content: RecordDict) -> dict[str, float | list[float]]:
    """The numbers of all MetricRecords by `record.name`, integers as integers."""
    return {f"{name}.{key}": record.plain(key) for name, record in content.metric_records.items() for key in record}


@dataclass(frozen=True, slots=True)
class _ArrayField:
    """An array as the header describes it: it stands inline at `offset` if it has no `digest`."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    stype: str
    digest: ObjectHash | None
    offset: int


_Fields = dict[str, Any]


def _lazy(field: _ArrayField, manifest: bytes, fetch: Fetch) -> Array:
    if field.digest is None:
        load = partial(_inline_bytes, manifest, field.offset, field.nbytes)
    else:
        load = partial(fetch, field.digest, field.nbytes)
    # Not `apart`: a push of what was received has to be the same bytes as one of what was computed.
    return Array.lazy(
        dtype=field.dtype, shape=field.shape, load=load, stype=field.stype, nbytes=field.nbytes, digest=field.digest
    )


def _inline_bytes(manifest: bytes, offset: int, nbytes: int) -> memoryview:
    return memoryview(manifest)[offset : offset + nbytes]  # read-only: Array copies it for whoever wants to write


def _parse(manifest: bytes) -> list[tuple[str, type[Record], _Fields]]:
    reader = _Reader(manifest)
    records = [reader.record(entry) for entry in _list_of(reader.header)]
    if len({name for name, _, _ in records}) != len(records):
        _refuse("two records have the same name")
    reader.finish()
    return records


class _Reader:
    """Walks through a manifest; knows where the next inline array has to stand."""

    def __init__(self, manifest: bytes) -> None:
        if not isinstance(manifest, bytes):
            _refuse(f"a manifest is bytes, not {type(manifest).__name__}")
        if len(manifest) < _PREFIX.size:
            _refuse("it is truncated")
        magic, version, zero, header_bytes, total = _PREFIX.unpack_from(manifest)
        if magic != MAGIC:
            _refuse("it does not begin like one")
        if version != VERSION or zero != 0:
            _refuse(f"it is of version {version}; this flq reads version {VERSION}")
        if total != len(manifest) or header_bytes > min(total - _PREFIX.size, MAX_HEADER_BYTES):
            _refuse("it is truncated, or its sizes are wrong")
        self.manifest = manifest
        self.end = _PREFIX.size + header_bytes
        self.header = _json(manifest[_PREFIX.size : self.end])

    def record(self, entry: Any) -> tuple[str, type[Record], _Fields]:
        name, kind, rows = _row(entry, 3)
        _check_key(name)
        if not isinstance(kind, str) or kind not in _KINDS:
            _refuse("a record is of an unknown kind")
        fields: _Fields = {}
        for row in _list_of(rows):
            key, field = self._array(row) if kind == "arrays" else _value(row, _KINDS[kind])
            _check_key(key)
            if key in fields:
                _refuse(f"the name {key!r} stands twice in a record")
            fields[key] = field
        return name, _KINDS[kind], fields

    def finish(self) -> None:
        """Refuse bytes behind the last buffer."""
        if self.end != len(self.manifest):
            _refuse("its buffers do not end where it ends")

    def _array(self, row: Any) -> tuple[Any, _ArrayField]:
        if isinstance(row, list) and len(row) == _OPAQUE_ROW:
            key, dtype, shape, digest, stype, nbytes = row
            if not isinstance(dtype, str) or not isinstance(stype, str) or stype == NUMPY_STYPE or not _is_size(nbytes):
                _refuse("an opaque array has no dtype, stype or size")
            lengths = _shape(shape)
        else:
            key, dtype, shape, digest = _row(row, 4)
            lengths = _shape(shape)
            stype, nbytes = NUMPY_STYPE, _nbytes(dtype, lengths)
        if digest is not None:
            return key, _ArrayField(dtype, lengths, nbytes, stype, _hash(digest), 0)
        field = _ArrayField(dtype, lengths, nbytes, stype, None, self._inline(nbytes))
        if stype == NUMPY_STYPE and dtype == "bool" and max(self._buffer(field), default=0) > 1:
            _refuse("a bool array holds bytes other than 0 and 1")
        return key, field

    def _buffer(self, field: _ArrayField) -> bytes:
        return self.manifest[field.offset : field.offset + field.nbytes]

    def _inline(self, nbytes: int) -> int:
        """The place of the next inline array."""
        start = _aligned(self.end)
        end = start + _aligned(nbytes)
        if nbytes > INLINE_BYTES or end > len(self.manifest):
            _refuse("an inline array does not fit in it")
        if any(self.manifest[self.end : start]) or any(self.manifest[start + nbytes : end]):
            _refuse("there is something between its buffers")
        self.end = end
        return start


_OPAQUE_ROW = 6


def _refuse(why: str) -> NoReturn:
    raise CodecError(f"this is no message of flq: {why}")


def _json(text: bytes) -> Any:
    try:
        return json.loads(text.decode("ascii"), parse_constant=lambda name: _refuse(f"its header holds {name}"))
    except (ValueError, RecursionError) as exc:
        raise CodecError("this is no message of flq: its header is no JSON") from exc


def _list_of(value: Any) -> list[Any]:
    if not isinstance(value, list):
        _refuse("a list is missing in its header")
    return value


def _row(value: Any, length: int) -> list[Any]:
    if not isinstance(value, list) or len(value) != length:
        _refuse("an entry of its header has another length")
    return value


def _check_key(key: Any) -> None:
    try:
        check_key(key)
    except (TypeError, ValueError) as exc:
        raise CodecError(f"this is no message of flq: {exc}") from exc


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_ARRAY_BYTES


def _shape(shape: Any) -> tuple[int, ...]:
    lengths = tuple(_list_of(shape))
    if len(lengths) > MAX_DIMENSIONS or not all(_is_size(length) for length in lengths):
        _refuse("an array has an impossible shape")
    return lengths


def _nbytes(dtype: Any, shape: tuple[int, ...]) -> int:
    if not isinstance(dtype, str) or dtype not in DTYPES:
        _refuse("an array is of a dtype that cannot travel")
    itemsize = DTYPES[dtype].itemsize
    # numpy multiplies all the axes but the empty ones, so an empty array can overflow as well
    if math.prod(length for length in shape if length) * itemsize > MAX_ARRAY_BYTES:
        _refuse("an array is too large")
    return math.prod(shape) * itemsize


def _hash(digest: Any) -> ObjectHash:
    try:
        value = bytes.fromhex(digest)
    except (TypeError, ValueError):
        value = b""
    if len(value) != _HASH_BYTES or value.hex() != digest:
        _refuse("an object has no hash")
    return ObjectHash(value)


def _value(row: Any, kind: type[Record]) -> tuple[Any, Any]:
    key, tag, value = _row(row, 3)
    allowed = _METRIC_TAGS if kind is MetricRecord else _CONFIG_TAGS
    if not isinstance(tag, str) or tag not in allowed:
        _refuse("a value is of an unknown type")
    if not tag.isupper() and tag != _EMPTY_LIST:
        return key, _from_json(tag, value)
    values = _list_of(value)
    if bool(values) == (tag == _EMPTY_LIST):
        _refuse("a list is empty where it must not be, or the other way round")
    return key, [_from_json(tag.lower(), item) for item in values]


_METRIC_TAGS = frozenset("ifIFl")
_CONFIG_TAGS = frozenset("bifsyBIFSYl")


def _from_json(tag: str, value: Any) -> Any:
    kind: Any = _TYPES[tag]
    if kind is bytes and isinstance(value, str):
        return _from_base64(value)
    if kind is float and isinstance(value, str) and value in _ODD_FLOATS:
        return _ODD_FLOATS[value]
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        _refuse("a value is not of the type that it says")
    if kind is int and not INT_MIN <= value <= INT_MAX:
        _refuse("an integer does not fit 64 bits")
    return value


def _from_base64(text: str) -> bytes:
    try:
        value = base64.b64decode(text, validate=True)
    except ValueError:
        value = b""
    if base64.b64encode(value).decode("ascii") != text:
        _refuse("a byte string is not in base64")
    return value
