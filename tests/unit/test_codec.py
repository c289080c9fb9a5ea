from __future__ import annotations

import hashlib
import json
import math
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flq.errors import CodecError
from flq.wire import codec
from flq.wire.array import DTYPES
from flq.wire.codec import Encoded, decode, encode, metrics, object_sizes
from flq.wire.ids import ObjectHash
from flq.wire.records import INT_MAX, INT_MIN, Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
INTS = st.integers(INT_MIN, INT_MAX)
ARRAYS = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda name: hnp.arrays(np.dtype(name), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
)
METRICS = st.one_of(INTS, st.floats(), st.lists(INTS, max_size=4), st.lists(st.floats(), max_size=4))
SCALARS = (INTS, st.floats(), st.text(max_size=8), st.binary(max_size=8), st.booleans())
CONFIGS = st.one_of(*SCALARS, *(st.lists(scalar, max_size=4) for scalar in SCALARS))
RECORDS = st.one_of(
    st.dictionaries(NAMES, ARRAYS.map(Array), max_size=4).map(ArrayRecord),
    st.dictionaries(NAMES, METRICS, max_size=4).map(MetricRecord),
    st.dictionaries(NAMES, CONFIGS, max_size=4).map(ConfigRecord),
)
CONTENTS = st.dictionaries(NAMES, RECORDS, max_size=4).map(RecordDict)


def store(encoded: Encoded) -> codec.Fetch:
    def fetch(object_hash: ObjectHash, size: int) -> memoryview:
        data = bytearray(encoded.objects[object_hash])
        assert len(data) == size
        return memoryview(data)

    return fetch


def nothing(_object_hash: ObjectHash, _size: int) -> memoryview:
    raise AssertionError("nothing is to be fetched here")


def same(one: object, other: object) -> bool:
    """Equal, with types, and with NaN like itself."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    if isinstance(one, float) and isinstance(other, float):
        return struct.pack("d", one) == struct.pack("d", other)
    return type(one) is type(other) and one == other


def identical(one: RecordDict, other: RecordDict) -> bool:
    """The same records in the same order, to the bit."""
    return list(one) == list(other) and all(
        type(one[name]) is type(other[name])
        and list(one[name]) == list(other[name])
        and all(same(one[name][key], other[name][key]) for key in one[name])
        for name in one
    )


@given(CONTENTS)
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_what_is_encoded_is_decoded_to_the_bit(content: RecordDict) -> None:
    encoded = encode(content)
    again = decode(encoded.manifest, store(encoded))
    assert identical(content, again)
    assert encode(again).manifest == encoded.manifest
    assert object_sizes(encoded.manifest).keys() == encoded.objects.keys()


@given(CONTENTS, st.data())
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_mutated_bytes_are_read_or_refused_and_nothing_else(content: RecordDict, data: st.DataObject) -> None:
    manifest = bytearray(encode(content).manifest)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(manifest) - 1))
        manifest[position] = data.draw(st.integers(0, 255))
    touch(bytes(manifest))


@given(CONTENTS, st.data())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_truncated_or_extended_bytes_are_refused(content: RecordDict, data: st.DataObject) -> None:
    manifest = encode(content).manifest
    with pytest.raises(CodecError):
        decode(manifest[: data.draw(st.integers(0, len(manifest) - 1))], nothing)
    with pytest.raises(CodecError):
        decode(manifest + b"\0", nothing)


@given(st.binary(max_size=200))
@example(b"")
@example(codec.MAGIC)
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(CodecError):
        decode(data, nothing)
    with pytest.raises(CodecError):
        object_sizes(data)


JSON = st.recursive(
    st.none() | st.booleans() | INTS | st.floats() | st.sampled_from(["a", "arrays", "float32", "f", "F", "y", "l"]),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=20,
)


@given(JSON)
@settings(max_examples=300)
def test_any_json_in_the_header_is_read_or_refused(header: Any) -> None:
    touch(framed(header))
    touch(framed([["a", "arrays", header]]))
    touch(framed([["a", "metrics", [header]]]))


def touch(manifest: bytes) -> None:
    """Read all that can be read of a manifest: there may be CodecErrors, and no other ones."""

    def fetch(_object_hash: ObjectHash, size: int) -> memoryview:
        if size > 1 << 20:
            raise CodecError("there is no such object")
        return memoryview(bytearray(size))

    try:
        object_sizes(manifest)
        content = decode(manifest, fetch)
        for record in content.array_records.values():
            for array in record.values():
                assert len(array.buffer()) == array.nbytes
        metrics(content)
    except CodecError:
        pass


def framed(header: Any, /, buffers: bytes = b"", **changes: Any) -> bytes:
    """A manifest with this header, whatever it is."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    start = -(-(24 + len(text)) // 64) * 64 if buffers else 24 + len(text)
    values = {"magic": codec.MAGIC, "version": 1, "zero": 0, "header": len(text), "total": start + len(buffers)}
    prefix = struct.pack("<4sHHQQ", *(values | changes).values())
    return (prefix + text).ljust(start, b"\0") + buffers


def arrays(*rows: list[Any]) -> list[Any]:
    return [["a", "arrays", list(rows)]]


def metric(tag: Any, value: Any) -> list[Any]:
    return [["m", "metrics", [["x", tag, value]]]]


def config(tag: Any, value: Any) -> list[Any]:
    return [["c", "config", [["x", tag, value]]]]


HASH = "ab" * 32

HOSTILE = {
    "another magic": framed([], magic=b"FLQ\x93"),
    "another version": framed([], version=2),
    "not zero": framed([], zero=1),
    "a header longer than all": framed([], header=1 << 63),
    "a total longer than all": framed([], total=1 << 63),
    "a header that is no JSON": framed(b"[["),
    "a header that is no ASCII": framed('[["é","metrics",[]]]'.encode()),
    "a header in UTF-16": framed("[]".encode("utf-16")),
    "a header with NaN": framed(b'[["m","metrics",[["x","f",NaN]]]]'),
    "a header that is no list": framed({}),
    "deep nesting": framed(b"[" * 200_000 + b"]" * 200_000),
    "an endless integer": framed(b'[["m","metrics",[["x","i",' + b"9" * 10_000 + b"]]]]"),
    "an infinite number": framed(b'[["m","metrics",[["x","f",1e999]]]]'),
    "a record without a kind": framed([["a"]]),
    "a record of an unknown kind": framed([["a", "pickle", []]]),
    "a record whose kind is a list": framed([["a", [], []]]),
    "a record with a number for a name": framed([[1, "metrics", []]]),
    "a name with NUL": framed([["a\0", "metrics", []]]),
    "half a surrogate in a name": framed([["\ud800", "metrics", []]]),
    "two records of one name": framed([["a", "metrics", []], ["a", "config", []]]),
    "two values of one key": framed([["m", "metrics", [["x", "i", 1], ["x", "i", 2]]]]),
    "two arrays of one key": framed(arrays(["w", "int8", [0], HASH], ["w", "int8", [0], HASH])),
    "an unknown dtype": framed(arrays(["w", "object", [1], HASH])),
    "a dtype that is a list": framed(arrays(["w", [], [1], HASH])),
    "a negative length": framed(arrays(["w", "int8", [-1], HASH])),
    "a fraction of a length": framed(arrays(["w", "int8", [1.5], HASH])),
    "a bool for a length": framed(arrays(["w", "int8", [True], HASH])),
    "a huge length": framed(arrays(["w", "int8", [1 << 62], HASH])),
    "lengths that overflow": framed(arrays(["w", "int8", [1 << 33, 1 << 33], HASH])),
    "an empty array that overflows": framed(arrays(["w", "int8", [0, 1 << 40, 1 << 40], HASH])),
    "too many axes": framed(arrays(["w", "int8", [1] * 65, HASH])),
    "a shape that is no list": framed(arrays(["w", "int8", 5, HASH])),
    "an inline array without bytes": framed(arrays(["w", "int8", [5], None])),
    "a large inline array": framed(arrays(["w", "int8", [1 << 17], None]), bytes(1 << 17)),
    "bytes that belong to nothing": framed(arrays(["w", "int8", [64], None]), bytes(128)),
    "something in the padding": framed(arrays(["w", "int8", [1], None]), b"\1" * 64),
    "bools that are none": framed(arrays(["w", "bool", [1], None]), b"\2" + bytes(63)),
    "a hash that is too short": framed(arrays(["w", "int8", [1], "ab"])),
    "a hash in capitals": framed(arrays(["w", "int8", [1], HASH.upper()])),
    "a hash that is a number": framed(arrays(["w", "int8", [1], 7])),
    "an opaque array of numpy": framed(arrays(["w", "int8", [1], HASH, "numpy.ndarray", 5])),
    "an opaque array without a size": framed(arrays(["w", "int8", [1], HASH, "mine", None])),
    "an opaque array of negative size": framed(arrays(["w", "int8", [1], HASH, "mine", -5])),
    "an unknown tag": framed(metric("z", 1)),
    "a tag that is a list": framed(metric([], 1)),
    "text in metrics": framed(metric("s", "x")),
    "a bool for an int": framed(metric("i", value=True)),
    "a float for an int": framed(metric("i", 1.5)),
    "an int for a float": framed(metric("f", 1)),
    "text for a float": framed(metric("f", "1.5")),
    "an int beyond 64 bits": framed(metric("i", 1 << 64)),
    "a scalar for a list": framed(metric("I", 1)),
    "a list of lists": framed(metric("I", [[1]])),
    "an empty list that says a type": framed(metric("I", [])),
    "a list that says it is empty": framed(metric("l", [1])),
    "no base64": framed(config("y", "a$==")),
    "base64 with stray bits": framed(config("y", "YR==")),
    "a number for bytes": framed(config("y", 5)),
}


@pytest.mark.parametrize("manifest", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_bytes_are_refused(manifest: bytes) -> None:
    with pytest.raises(CodecError, match="no message of flq"):
        decode(manifest, nothing)


def test_the_frame_of_the_hostile_examples_is_right() -> None:
    assert decode(framed([]), nothing) == RecordDict()
    good = framed(arrays(["w", "int8", [3], None], ["v", "int8", [2], HASH]), b"abc" + bytes(61))
    assert bytes(decode(good, nothing).array_records["a"]["w"].buffer()) == b"abc"


def test_one_object_has_one_size() -> None:
    manifest = framed(arrays(["v", "int8", [2], HASH], ["w", "int8", [3], HASH]))
    with pytest.raises(CodecError, match="two sizes"):
        object_sizes(manifest)


def test_a_manifest_is_bytes() -> None:
    with pytest.raises(CodecError, match="str"):
        decode("manifest", nothing)  # type: ignore[arg-type]


def test_refuses_without_setting_memory_aside() -> None:
    manifest = framed(arrays(["w", "float64", [1 << 38], HASH]))
    tracemalloc.start()
    try:
        array = decode(manifest, nothing).array_records["a"]["w"]
        assert array.nbytes == 1 << 41
        with pytest.raises(CodecError):
            decode(framed(arrays(["w", "float64", [1 << 60], HASH])), nothing)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_small_arrays_stand_inline_and_large_ones_are_objects() -> None:
    small, large = np.arange(codec.INLINE_BYTES, dtype=np.uint8), np.arange(codec.INLINE_BYTES + 1, dtype=np.uint8)
    encoded = encode(RecordDict({"a": ArrayRecord([small, large, large.copy()])}))
    name = hashlib.sha256(large.tobytes()).digest()
    assert object_sizes(encoded.manifest) == {name: large.nbytes}
    assert bytes(encoded.objects[ObjectHash(name)]) == large.tobytes()
    start = encoded.manifest.index(small.tobytes())
    assert start % codec.ALIGNMENT == 0


def test_inline_arrays_have_a_limit_together() -> None:
    one = [np.full(codec.INLINE_BYTES, index, np.uint8) for index in range(20)]
    encoded = encode(RecordDict({"a": ArrayRecord(one)}))
    assert len(encoded.objects) == 4
    assert len(encoded.manifest) < codec.INLINE_TOTAL + 8192
    assert decode(encoded.manifest, store(encoded)) == RecordDict({"a": ArrayRecord(one)})


def test_nothing_large_is_copied() -> None:
    source = np.zeros(4 << 20, np.float32)
    content = RecordDict({"a": ArrayRecord({"w": Array.owning(source)})})
    tracemalloc.start()
    try:
        encoded = encode(content)
        (buffer,) = encoded.objects.values()
        assert np.shares_memory(np.frombuffer(buffer, np.uint8), source)
        received = bytearray(source.nbytes)
        array = decode(encoded.manifest, lambda _hash, _size: memoryview(received)).array_records["a"]["w"].numpy()
        assert np.shares_memory(array, np.frombuffer(received, np.uint8))
        assert tracemalloc.get_traced_memory()[1] < source.nbytes + (1 << 20)
    finally:
        tracemalloc.stop()


def test_received_arrays_are_the_callers_own() -> None:
    content = RecordDict({"a": ArrayRecord([np.zeros(4), np.zeros(codec.INLINE_BYTES)])})
    encoded = encode(content)
    again = decode(encoded.manifest, store(encoded))
    for array in again.array_records["a"].to_numpy_ndarrays():
        array[:] = 1
    assert again == content


def test_objects_are_fetched_when_they_are_touched() -> None:
    encoded = encode(RecordDict({"a": ArrayRecord([np.zeros(100_000), np.ones(100_000)])}))
    fetched: list[ObjectHash] = []

    def fetch(object_hash: ObjectHash, size: int) -> memoryview:
        fetched.append(object_hash)
        return store(encoded)(object_hash, size)

    record = decode(encoded.manifest, fetch).array_records["a"]
    assert (record["0"].shape, record["1"].dtype, fetched) == ((100_000,), "float64", [])
    assert record["1"].view().sum() == 100_000
    assert fetched == [record["1"].digest]


def test_what_was_received_is_passed_on_without_being_read() -> None:
    encoded = encode(RecordDict({"a": ArrayRecord([np.zeros(100_000)])}))
    passed_on = encode(decode(encoded.manifest, nothing))
    assert passed_on.manifest == encoded.manifest
    assert passed_on.objects.keys() == encoded.objects.keys()


def test_an_object_of_another_size_is_refused_when_it_is_touched() -> None:
    encoded = encode(RecordDict({"a": ArrayRecord([np.zeros(100_000)])}))
    array = decode(encoded.manifest, lambda _hash, _size: memoryview(bytearray(8))).array_records["a"]["0"]
    with pytest.raises(CodecError, match="8 bytes came"):
        array.numpy()


def test_opaque_arrays_travel() -> None:
    record = ArrayRecord({"s": Array("int4", (3,), "mine", b"abc"), "l": Array("int4", (9,), "mine", bytes(100_000))})
    encoded = encode(RecordDict({"a": record}))
    assert len(encoded.objects) == 1
    again = decode(encoded.manifest, store(encoded)).array_records["a"]
    assert again == record
    assert (again["s"].data, again["s"].stype, again["l"].nbytes) == (b"abc", "mine", 100_000)


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.7976931348623157e308, 0.1, 1e22, INT_MAX, INT_MIN, 0]
)
def test_odd_numbers_come_back_as_they_were(value: float) -> None:
    content = RecordDict({"m": MetricRecord({"x": value, "l": [value]})})
    again = decode(encode(content).manifest, nothing).metric_records["m"]
    assert same(again["x"], value)
    assert same(again["l"], [value])


def test_the_same_content_gives_the_same_bytes() -> None:
    def content(offset: int) -> RecordDict:
        strided = np.arange(20, dtype=">f4")[offset::2]
        return RecordDict({"a": ArrayRecord([strided]), "m": MetricRecord({"nan": math.nan, "x": 1})})

    assert encode(content(0)).manifest == encode(content(0)).manifest
    assert encode(content(0)).manifest != encode(content(1)).manifest
    one, other = RecordDict({"m": MetricRecord({"x": 1})}), RecordDict({"m": MetricRecord({"x": 1.0})})
    assert encode(one).manifest != encode(other).manifest


def test_the_format_does_not_change_by_accident() -> None:
    content = RecordDict(
        {
            "a": ArrayRecord({"w": Array(np.arange(3, dtype=np.int16)), "o": Array(np.zeros(70_000, np.int8))}),
            "m": MetricRecord({"n": 3, "loss": 0.5, "l": [1.0], "e": []}),
            "c": ConfigRecord({"b": True, "s": "é", "y": b"\0\xff", "nan": math.nan}),
        }
    )
    manifest = encode(content).manifest
    assert hashlib.sha256(manifest).hexdigest() == "33cd9f9c201bcc11de7dfa2bbbede693d42510e21842a1469f2f536501c0452f"


def test_metrics_are_flattened_by_record() -> None:
    content = RecordDict(
        {
            "fit": MetricRecord({"n": 3, "loss": 0.5, "per-class": [0.1, 0.2]}),
            "c": ConfigRecord({"x": 1}),
            "eval": MetricRecord({"loss": 0.25}),
        }
    )
    assert metrics(content) == {"fit.n": 3, "fit.loss": 0.5, "fit.per-class": [0.1, 0.2], "eval.loss": 0.25}
    assert type(metrics(content)["fit.n"]) is int


def test_a_list_that_was_spoilt_after_it_was_checked_is_refused() -> None:
    record = MetricRecord({"l": [1.0]})
    record["l"].append("x")  # type: ignore[union-attr, arg-type]
    with pytest.raises(TypeError, match="'l'"):
        encode(RecordDict({"m": record}))


def test_too_much_text_is_refused_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_HEADER_BYTES", 1000)
    with pytest.raises(CodecError, match="at most 1000") as caught:
        encode(RecordDict({"m": MetricRecord({"l": [0.1] * 1000})}))
    assert "ArrayRecord" in str(caught.value.hint)
