from __future__ import annotations

import copy
import enum
import io
import pickle
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flq.errors import CodecError
from flq.wire.array import DTYPES
from flq.wire.records import (
    Array,
    ArrayRecord,
    ConfigRecord,
    ConfigsRecord,
    MetricRecord,
    MetricsRecord,
    ParametersRecord,
    RecordDict,
    RecordSet,
)

KNOWN = st.sampled_from(sorted(DTYPES)).map(np.dtype)


def lazy(source: np.ndarray, *, size: int | None = None) -> tuple[Array, list[int]]:
    loads: list[int] = []

    def load() -> memoryview:
        loads.append(1)
        return memoryview(bytearray(source.tobytes()[:size]))

    return Array.lazy(dtype=source.dtype.name, shape=source.shape, load=load), loads


class TestArray:
    @given(hnp.arrays(KNOWN, hnp.array_shapes(min_dims=0, min_side=0)))
    def test_keeps_dtype_shape_and_every_bit(self, source: np.ndarray) -> None:
        array = Array(source)
        again = array.numpy()
        assert (array.dtype, array.shape) == (source.dtype.name, source.shape)
        assert again.tobytes() == source.tobytes()
        assert (again.dtype, again.shape, again.flags.c_contiguous) == (source.dtype, source.shape, True)
        assert bytes(array.buffer()) == source.tobytes()

    @pytest.mark.parametrize(
        "source",
        [
            np.arange(12, dtype=">i4").reshape(3, 4),
            np.asfortranarray(np.arange(12, dtype=np.int32).reshape(3, 4)),
            np.arange(24, dtype=np.int32).reshape(3, 8)[:, ::2] // 2,
            np.arange(12, dtype=np.int32)[::-1][::-1].reshape(3, 4),
        ],
        ids=["big-endian", "fortran", "strided", "reversed"],
    )
    def test_is_little_endian_and_contiguous_whatever_comes_in(self, source: np.ndarray) -> None:
        plain = Array(np.arange(12, dtype="<i4").reshape(3, 4))
        assert Array(source) == plain
        assert Array(source).digest == plain.digest
        assert Array.owning(source) == plain

    def test_is_a_snapshot(self) -> None:
        source = np.zeros(3)
        array = Array(source)
        source[0] = 1
        array.numpy()[1] = 1
        assert array.numpy().tolist() == [0, 0, 0]

    def test_a_view_is_no_copy_and_cannot_be_written_to(self) -> None:
        array = Array(np.zeros(3))
        assert np.shares_memory(array.view(), array.view())
        with pytest.raises(ValueError, match="read-only"):
            array.view()[0] = 1
        with pytest.raises(TypeError):
            array.buffer()[0] = 1

    def test_owning_takes_no_copy(self) -> None:
        source = np.zeros(3, np.float32)
        assert np.shares_memory(Array.owning(source).view(), source)

    @pytest.mark.parametrize(
        "source",
        [
            np.array([None, {}], dtype=object),
            np.array(["a"]),
            np.array([b"a"]),
            np.array(["2024-01-01"], dtype="datetime64[D]"),
            np.zeros(2, dtype=[("a", "f4"), ("b", "O")]),
            np.zeros(2, np.longdouble),
            np.ma.masked_array([1.0, 2.0], mask=[True, False]),
        ],
        ids=["object", "str", "bytes", "date", "struct", "longdouble", "masked"],
    )
    def test_refuses_what_cannot_travel_and_names_the_array(self, source: np.ndarray) -> None:
        with pytest.raises(TypeError, match="cannot travel"):
            Array(source)
        with pytest.raises(TypeError, match=r"array '1': .*cannot travel"):
            ArrayRecord([np.zeros(1), source])

    @pytest.mark.parametrize("arguments", [(), (1,), ([1, 2],), (np.float32(1),), (np.zeros(1), np.zeros(1)), (None,)])
    def test_is_made_of_an_array_only(self, arguments: tuple[object, ...]) -> None:
        with pytest.raises(TypeError):
            Array(*arguments)

    def test_data_are_npy_bytes_and_make_an_array_again(self) -> None:
        array = Array(np.arange(6, dtype=np.float32).reshape(2, 3))
        assert np.array_equal(np.load(io.BytesIO(array.data), allow_pickle=False), array.numpy())
        assert Array(array.dtype, array.shape, array.stype, array.data) == array
        assert Array(dtype=array.dtype, shape=array.shape, stype=array.stype, data=array.data) == array

    def test_refuses_data_that_is_not_what_it_says(self) -> None:
        data = Array(np.zeros(3, np.float32)).data
        with pytest.raises(ValueError, match="announced is float32"):
            Array("float32", (4,), "numpy.ndarray", data)
        with pytest.raises(ValueError, match=r"no \.npy file"):
            Array("float32", (3,), "numpy.ndarray", data[:20])
        pickled = io.BytesIO()
        np.save(pickled, np.array([{}], dtype=object), allow_pickle=True)
        with pytest.raises(ValueError, match=r"no \.npy file"):
            Array("object", (1,), "numpy.ndarray", pickled.getvalue())

    def test_an_own_serialisation_travels_as_opaque_bytes(self) -> None:
        array = Array("bfloat16", (2, 2), "my.codec", b"12345678")
        assert (array.dtype, array.shape, array.stype, array.data) == ("bfloat16", (2, 2), "my.codec", b"12345678")
        with pytest.raises(TypeError, match="opaque"):
            array.numpy()
        assert pickle.loads(pickle.dumps(array)) == array  # noqa: S301 - our own bytes
        assert array != Array("bfloat16", (2, 2), "my.codec", b"12345679")
        with pytest.raises(TypeError, match="data is bytes"):
            Array("bfloat16", (2, 2), "my.codec", "12345678")  # type: ignore[call-overload]

    def test_equality_is_by_content(self) -> None:
        nan = np.array([np.nan, 1])
        assert Array(nan) == Array(nan.copy())
        assert Array(np.zeros(2, np.float32)) != Array(np.zeros(2, np.float64))
        assert Array(np.zeros((2, 1))) != Array(np.zeros((1, 2)))
        assert Array(np.zeros(2)) != Array(np.ones(2))
        assert Array(np.zeros(2)) != "an array"
        hashed = Array(np.zeros(2))
        assert hashed.digest == hashed.digest != Array(np.ones(2)).digest

    def test_copies_and_pickles(self) -> None:
        record = ArrayRecord([np.arange(3), np.array(1.5, np.float16)])
        assert copy.deepcopy(record) == record
        assert pickle.loads(pickle.dumps(record)) == record  # noqa: S301 - our own bytes

    def test_bfloat16_of_torch_is_refused_with_a_hint(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch", fake_torch())
        with pytest.raises(TypeError, match="float"):
            Array(FakeTensor(None))


class TestLazyArray:
    def test_is_read_when_it_is_touched_and_not_kept(self) -> None:
        array, loads = lazy(np.arange(4))
        assert (array.shape, array.nbytes, array.loaded, loads) == ((4,), 32, False, [])
        first, second = array.numpy(), array.numpy()
        assert len(loads) == 2
        assert not array.loaded
        first[0] = 9
        assert second.tolist() == array.view().tolist() == [0, 1, 2, 3]

    def test_is_kept_between_load_and_drop(self) -> None:
        array, loads = lazy(np.arange(4))
        array.load()
        array.numpy()[0] = 7
        assert array.view().tolist() == [0, 1, 2, 3]
        assert len(loads) == 1
        array.drop()
        assert not array.loaded
        assert array.view().tolist() == [0, 1, 2, 3]
        assert len(loads) == 2

    def test_what_is_in_memory_only_is_never_dropped(self) -> None:
        array = Array(np.arange(4))
        array.drop()
        assert array.numpy().tolist() == [0, 1, 2, 3]

    def test_hands_out_a_copy_if_the_buffer_cannot_be_written_to(self) -> None:
        array = Array.lazy(dtype="uint8", shape=(2,), load=lambda: memoryview(b"ab"))
        array.numpy()[0] = 1
        assert bytes(array.buffer()) == b"ab"

    def test_refuses_bytes_of_another_size(self) -> None:
        array, _ = lazy(np.arange(4), size=31)
        with pytest.raises(CodecError, match="31 bytes came for an array of 32"):
            array.numpy()

    def test_refuses_bools_that_are_none(self) -> None:
        array = Array.lazy(dtype="bool", shape=(2,), load=lambda: memoryview(bytearray(b"\1\2")))
        with pytest.raises(CodecError, match="bool"):
            array.view()

    def test_a_record_loads_and_drops_all(self) -> None:
        one, loads = lazy(np.arange(4))
        record = ArrayRecord({"a": one, "b": Array(np.zeros(1))})
        states = [one.loaded]
        record.load()
        states.append(one.loaded)
        record.drop()
        states.append(one.loaded)
        assert (states, len(loads)) == ([False, True, False], 1)


class TestArrayRecord:
    def test_names_a_list_by_its_positions(self) -> None:
        arrays = [np.full(2, index) for index in range(11)]
        record = ArrayRecord(arrays)
        assert list(record) == [str(index) for index in range(11)]
        assert [array[0] for array in record.to_numpy_ndarrays()] == list(range(11))
        assert ArrayRecord.from_numpy_ndarrays(arrays) == record

    def test_can_empty_its_input_and_be_emptied(self) -> None:
        arrays = [np.zeros(2), np.ones(2)]
        record = ArrayRecord(arrays, keep_input=False)
        assert arrays == []
        assert [array.tolist() for array in record.to_numpy_ndarrays(keep_input=False)] == [[0, 0], [1, 1]]
        assert not record
        named = {"a": Array(np.zeros(2))}
        assert len(ArrayRecord.from_array_dict(named, keep_input=False)) == 1
        assert named == {}

    def test_counts_bytes(self) -> None:
        assert ArrayRecord({"ab": Array(np.zeros((2, 3), np.float32))}).count_bytes() == 26

    @pytest.mark.parametrize("source", [[1.0], [[1.0]], {"a": 1}, {"a": np.zeros(1)}, "abc", 5, (np.zeros(1),)])
    def test_refuses_other_sources(self, source: object) -> None:
        with pytest.raises(TypeError):
            ArrayRecord(source)  # type: ignore[arg-type]

    def test_refuses_two_sources(self) -> None:
        with pytest.raises(TypeError, match="one of"):
            ArrayRecord([np.zeros(1)], array_dict={})

    def test_refuses_what_is_no_array(self) -> None:
        record = ArrayRecord()
        with pytest.raises(TypeError, match="'w' is ndarray"):
            record["w"] = np.zeros(1)  # type: ignore[assignment]
        with pytest.raises(TypeError, match="keys are str"):
            record[0] = Array(np.zeros(1))  # type: ignore[index]
        assert not record

    def test_speaks_torch_without_importing_it_before_it_is_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch", fake_torch())
        state = OrderedDict(w=FakeTensor(np.ones((2, 2), np.float32)), b=FakeTensor(np.array(3)))
        record = ArrayRecord(state)
        assert [array.shape for array in record.values()] == [(2, 2), ()]
        state["w"].value[:] = 0  # type: ignore[index]
        again = record.to_torch_state_dict()
        assert list(again) == ["w", "b"]
        assert again["w"].value.tolist() == [[1, 1], [1, 1]]
        assert ArrayRecord.from_torch_state_dict(dict(state), keep_input=False)["b"].shape == ()
        assert Array.from_torch_tensor(state["b"]) == Array.from_numpy_ndarray(np.array(3))


class FakeTensor:
    def __init__(self, value: np.ndarray | None) -> None:
        self.value = value

    def detach(self) -> FakeTensor:
        return self

    def cpu(self) -> FakeTensor:
        return self

    def numpy(self) -> np.ndarray:
        if self.value is None:
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self.value


def fake_torch() -> types.ModuleType:
    torch = types.ModuleType("torch")
    torch.Tensor = FakeTensor  # type: ignore[attr-defined]
    torch.from_numpy = FakeTensor  # type: ignore[attr-defined]
    return torch


class Colour(enum.IntEnum):
    RED = 4


class Mode(enum.StrEnum):
    FAST = "fast"


class TestValueRecords:
    @pytest.mark.parametrize("value", [1, -1.5, float("nan"), [1, 2], [1.0, 2.0], [], -(1 << 63), (1 << 64) - 1])
    def test_a_metric_record_takes_numbers(self, value: object) -> None:
        assert MetricRecord({"x": value})["x"] is value  # type: ignore[dict-item]

    @pytest.mark.parametrize(
        "value", ["1", b"1", None, [1, 2.0], ["1"], [[1]], (1, 2), {1}, np.zeros(2), np.float32(1), np.int64(1), 1j]
    )
    def test_a_metric_record_refuses_the_rest(self, value: object) -> None:
        with pytest.raises(TypeError, match="'x'"):
            MetricRecord({"x": value})  # type: ignore[dict-item]

    @pytest.mark.parametrize("value", [1, 1.5, "a", b"a", True, [1], [1.5], ["a"], [b"a"], [True, False], []])
    def test_a_config_record_takes_scalars_and_lists_of_one_type(self, value: object) -> None:
        assert ConfigRecord({"x": value})["x"] is value  # type: ignore[dict-item]

    @pytest.mark.parametrize("value", [None, [1, "a"], [True, 1], [1, 1.0], {"a": 1}, (1,), bytearray(b"a"), [None]])
    def test_a_config_record_refuses_the_rest(self, value: object) -> None:
        with pytest.raises(TypeError, match="'x'"):
            ConfigRecord({"x": value})  # type: ignore[dict-item]

    def test_values_of_a_subclass_become_plain(self) -> None:
        record = ConfigRecord({"a": np.float64(0.5), "b": Colour.RED, "c": Mode.FAST, "d": np.str_("x")})
        assert dict(record) == {"a": 0.5, "b": 4, "c": "fast", "d": "x"}
        assert [type(value) for value in record.values()] == [float, int, str, str]
        assert type(MetricRecord({"ok": True})["ok"]) is int

    @pytest.mark.parametrize("value", [1 << 64, -(1 << 63) - 1, [0, 1 << 64]])
    def test_integers_fit_64_bits(self, value: object) -> None:
        with pytest.raises(ValueError, match="64 bits"):
            MetricRecord({"x": value})  # type: ignore[dict-item]

    def test_says_how_to_convert_numpy_scalars(self) -> None:
        with pytest.raises(TypeError, match=r"\.item\(\)"):
            MetricRecord({"loss": np.float32(1)})  # type: ignore[dict-item]

    @pytest.mark.parametrize("key", ["a\0b", "\ud800"])
    def test_refuses_keys_that_no_database_takes(self, key: str) -> None:
        with pytest.raises(ValueError, match="key"):
            MetricRecord({key: 1})

    def test_lists_can_be_appended_to(self) -> None:
        record = MetricRecord({"losses": []})
        record["losses"].append(0.5)  # type: ignore[union-attr, arg-type]
        assert record.plain("losses") == [0.5]
        record["losses"].append("x")  # type: ignore[union-attr, arg-type]
        with pytest.raises(TypeError):
            record.plain("losses")

    def test_counts_bytes(self) -> None:
        assert MetricRecord({"a": 1, "bc": [1.0, 2.0]}).count_bytes() == 1 + 8 + 2 + 16
        assert ConfigRecord({"a": "é", "b": b"abc", "c": True, "d": [1]}).count_bytes() == 4 + 2 + 3 + 1 + 8

    def test_can_empty_its_input(self) -> None:
        source = {"a": 1.0}
        assert MetricRecord(source, keep_input=False)["a"] == 1.0
        assert source == {}

    def test_records_of_different_types_are_not_equal(self) -> None:
        assert MetricRecord({"a": 1}) != ConfigRecord({"a": 1})
        assert MetricRecord({"a": 1}) == {"a": 1}
        assert MetricRecord({"a": 1}) != 5
        with pytest.raises(TypeError, match="unhashable"):
            hash(MetricRecord())


class TestRecordDict:
    def test_has_a_live_view_of_each_type(self) -> None:
        content = RecordDict({"a": ArrayRecord(), "m": MetricRecord({"x": 1}), "c": ConfigRecord()})
        assert (list(content.array_records), list(content.config_records)) == (["a"], ["c"])
        content.metric_records["n"] = MetricRecord({"y": 2})
        assert list(content) == ["a", "m", "c", "n"]
        assert len(content.metric_records) == 2
        del content.metric_records["m"]
        assert "m" not in content
        with pytest.raises(KeyError):
            content.metric_records["a"]
        with pytest.raises(KeyError):
            del content.metric_records["a"]
        with pytest.raises(TypeError, match="not MetricRecord"):
            content.metric_records["z"] = ConfigRecord()  # type: ignore[assignment]

    @pytest.mark.parametrize("value", [{}, None, 1, RecordDict()])
    def test_holds_records_only(self, value: object) -> None:
        with pytest.raises(TypeError, match="holds records"):
            RecordDict({"a": value})  # type: ignore[dict-item]

    def test_counts_bytes(self) -> None:
        assert RecordDict({"m": MetricRecord({"x": 1})}).count_bytes() == 10

    def test_old_names_are_the_same_classes(self) -> None:
        assert (ParametersRecord, MetricsRecord, ConfigsRecord, RecordSet) == (
            ArrayRecord,
            MetricRecord,
            ConfigRecord,
            RecordDict,
        )
        content = RecordDict({"a": ArrayRecord(), "m": MetricRecord(), "c": ConfigRecord()})
        views = content.parameters_records, content.metrics_records, content.configs_records
        assert [list(view) for view in views] == [["a"], ["m"], ["c"]]
