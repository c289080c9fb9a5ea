"""The typed mappings that a message is made of.

A RecordDict maps names to records; a record maps names to arrays (ArrayRecord), numbers (MetricRecord) or
configuration values (ConfigRecord). What may stand in them is checked when it is assigned. The order of insertion
is kept over a transport and belongs to the content.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from flq.wire.array import Array, is_torch_tensor

if TYPE_CHECKING:
    import torch

__all__ = [
    "Array",
    "ArrayRecord",
    "ConfigRecord",
    "ConfigRecordValues",
    "ConfigsRecord",
    "MetricRecord",
    "MetricRecordValues",
    "MetricsRecord",
    "ParametersRecord",
    "Record",
    "RecordDict",
    "RecordSet",
]

MetricScalar = int | float
MetricRecordValues = int | float | list[int] | list[float]
"""A value of a MetricRecord."""

ConfigScalar = int | float | str | bytes | bool
ConfigRecordValues = int | float | str | bytes | bool | list[int] | list[float] | list[str] | list[bytes] | list[bool]
"""A value of a ConfigRecord."""

INT_MIN, INT_MAX = -(1 << 63), (1 << 64) - 1
_NUMBER_BYTES = 8

V = TypeVar("V")


class TypedMapping(MutableMapping[str, V], Generic[V]):
    """A mutable mapping from str that checks what is assigned and keeps the order of insertion."""

    __slots__ = ("_items",)  # a long training keeps thousands of records

    def __init__(self) -> None:
        self._items: dict[str, V] = {}

    def _checked(self, key: str, value: V) -> V:
        """`value` as it is to be stored. Raises `TypeError` if it may not stand here."""
        raise NotImplementedError

    def __setitem__(self, key: str, value: V) -> None:
        check_key(key)
        self._items[key] = self._checked(key, value)

    def __getitem__(self, key: str) -> V:
        return self._items[key]

    def __delitem__(self, key: str) -> None:
        del self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: object) -> bool:
        return key in self._items

    def __eq__(self, other: object) -> bool:
        if isinstance(other, TypedMapping):
            return type(self) is type(other) and self._items == other._items
        return self._items == other if isinstance(other, Mapping) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._items!r})"


def check_key(key: object) -> None:
    """Raise `TypeError` unless `key` is a str, and `ValueError` if it cannot stand in a database."""
    if not isinstance(key, str):
        raise TypeError(f"keys are str, not {type(key).__name__}: {key!r}")
    if "\0" in key or any("\ud800" <= character <= "\udfff" for character in key):
        raise ValueError(f"a key holds a character that cannot be stored: {key!r}")


class ArrayRecord(TypedMapping[Array]):
    """Named arrays, such as the layers of a model, in order.

    `ArrayRecord(list_of_ndarrays)` names them `"0"`, `"1"`, ...; `ArrayRecord(torch_state_dict)` and
    `ArrayRecord({name: Array})` keep the names. With `keep_input=False` the input is emptied on the way, so that
    no second copy of the whole model stands in memory.

    >>> record = ArrayRecord([np.zeros((2, 3), np.float32), np.zeros(3, np.float32)])
    >>> {name: array.shape for name, array in record.items()}
    {'0': (2, 3), '1': (3,)}
    """

    __slots__ = ()

    def __init__(
        self,
        source: list[NDArray[Any]] | Mapping[str, Array] | Mapping[str, torch.Tensor] | None = None,
        *,
        numpy_ndarrays: list[NDArray[Any]] | None = None,
        torch_state_dict: Mapping[str, torch.Tensor] | None = None,
        array_dict: Mapping[str, Array] | None = None,
        keep_input: bool = True,
    ) -> None:
        super().__init__()
        given = [x for x in (source, numpy_ndarrays, torch_state_dict, array_dict) if x is not None]
        if len(given) > 1:
            raise TypeError("an ArrayRecord is made from one of: a list of ndarrays, a torch state dict, named Arrays")
        if not given:
            return
        if isinstance(given[0], list):
            self._take_list(given[0], keep_input=keep_input)
        elif isinstance(given[0], Mapping):
            self._take_mapping(given[0], keep_input=keep_input)
        else:
            raise TypeError(f"an ArrayRecord cannot be made from {type(given[0]).__name__}")

    def _take_list(self, source: list[NDArray[Any]], *, keep_input: bool) -> None:
        for index, ndarray in enumerate(list(source) if keep_input else _emptied(source)):
            if not isinstance(ndarray, np.ndarray):
                raise TypeError(f"array {str(index)!r} is no ndarray but {type(ndarray).__name__}")
            self._add(str(index), ndarray)

    def _take_mapping(self, source: Mapping[str, Any], *, keep_input: bool) -> None:
        for key in list(source):
            value = source[key]
            if isinstance(value, Array):
                self[key] = value
            elif is_torch_tensor(value):
                self._add(key, value)
            else:
                raise TypeError(f"array {key!r} is neither an Array nor a torch tensor but {type(value).__name__}")
            if not keep_input:
                cast("MutableMapping[str, Any]", source).pop(key)

    def _add(self, key: str, source: Any) -> None:
        try:
            self[key] = Array(source)
        except TypeError as exc:
            raise TypeError(f"array {key!r}: {exc}") from None  # it says all

    def _checked(self, key: str, value: Array) -> Array:
        if not isinstance(value, Array):
            raise TypeError(f"an ArrayRecord holds Arrays; {key!r} is {type(value).__name__}")
        return value

    @classmethod
    def from_numpy_ndarrays(cls, ndarrays: list[NDArray[Any]], *, keep_input: bool = True) -> Self:
        """A record of snapshots of `ndarrays`, named `"0"`, `"1"`, ..."""
        return cls(numpy_ndarrays=ndarrays, keep_input=keep_input)

    @classmethod
    def from_torch_state_dict(cls, state_dict: Mapping[str, torch.Tensor], *, keep_input: bool = True) -> Self:
        """A record of snapshots of a torch state dict."""
        return cls(torch_state_dict=state_dict, keep_input=keep_input)

    @classmethod
    def from_array_dict(cls, array_dict: Mapping[str, Array], *, keep_input: bool = True) -> Self:
        """A record of these Arrays."""
        return cls(array_dict=array_dict, keep_input=keep_input)

    def to_numpy_ndarrays(self, *, keep_input: bool = True) -> list[NDArray[Any]]:
        """The arrays in order, writable and the caller's own; `keep_input=False` empties the record on the way."""
        return [array.numpy() for array in self._handed_out(keep_input=keep_input).values()]

    def to_torch_state_dict(self, *, keep_input: bool = True) -> OrderedDict[str, torch.Tensor]:
        """The arrays as a torch state dict, the caller's own; `keep_input=False` empties the record on the way."""
        return OrderedDict((key, array.torch()) for key, array in self._handed_out(keep_input=keep_input).items())

    def _handed_out(self, *, keep_input: bool) -> Mapping[str, Array]:
        return self._items if keep_input else _Emptying(self._items)

    def count_bytes(self) -> int:
        """The size of all arrays and keys in bytes."""
        return sum(array.nbytes + len(key.encode()) for key, array in self.items())

    def load(self) -> None:
        """Keep the bytes of all arrays in memory until `drop`."""
        for array in self.values():
            array.load()

    def drop(self) -> None:
        """Forget the bytes of all arrays that can be read again."""
        for array in self.values():
            array.drop()


class _Emptying(Mapping[str, Array]):
    """Reads a dict once, taking out each item as it goes."""

    def __init__(self, source: dict[str, Array]) -> None:
        self._source = source

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._source))

    def __getitem__(self, key: str) -> Array:
        return self._source.pop(key)

    def __len__(self) -> int:
        return len(self._source)


def _emptied(source: list[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    source.reverse()
    while source:
        yield source.pop()


class _ValueRecord(TypedMapping[V]):
    """A record of scalars of some types, and of lists that hold one of these types."""

    __slots__ = ()

    _SCALARS: ClassVar[tuple[type, ...]]

    def __init__(self, source: Mapping[str, V] | None = None, *, keep_input: bool = True) -> None:
        super().__init__()
        for key in list(source or ()):
            self[key] = cast("Mapping[str, V]", source)[key]
            if not keep_input:
                cast("MutableMapping[str, V]", source).pop(key)

    def _checked(self, key: str, value: V) -> V:
        if not isinstance(value, list):
            return cast("V", self._scalar(key, value))
        self.plain_list(key, value)
        return value  # the list itself, so that an app can append to it; the codec looks at it again

    def plain_list(self, key: str, values: list[Any]) -> list[Any]:
        """`values` as plain Python values of one type. Raises `TypeError` otherwise."""
        plain = [self._scalar(key, value) for value in values]
        if len({type(value) for value in plain}) > 1:
            raise TypeError(f"the values of the list {key!r} are of more than one type")
        return plain

    def plain(self, key: str) -> Any:
        """The value of `key` as plain Python values, checked again. Raises `TypeError`."""
        value = self._items[key]
        return self.plain_list(key, value) if isinstance(value, list) else value

    def _scalar(self, key: str, value: Any) -> Any:
        kind: Any
        for kind in self._SCALARS:
            if isinstance(value, kind):
                return _in_range(key, int(value)) if kind is int else _PLAIN[kind](value)
        names = ", ".join(kind.__name__ for kind in self._SCALARS)
        hint = "; convert it with .item()" if isinstance(value, np.generic) else ""
        raise TypeError(
            f"a {type(self).__name__} holds {names} or lists of one of them; {key!r} is {type(value).__name__}{hint}"
        )

    def count_bytes(self) -> int:
        """The size of all values and keys in bytes, eight for a number."""
        return sum(len(key.encode()) + _size(value) for key, value in self.items())


def _in_range(key: str, value: int) -> int:
    if not INT_MIN <= value <= INT_MAX:
        raise ValueError(f"{key!r} is {value}, which does not fit 64 bits")
    return value


# A subclass (np.float64, IntEnum, StrEnum) is stored as the plain value, so that both ends see the same.
_PLAIN: dict[type, Any] = {bool: bool, float: float, str: str.__str__, bytes: bytes}


def _size(value: Any) -> int:
    if isinstance(value, list):
        return sum(map(_size, value))
    if isinstance(value, bool):
        return 1
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    return len(value) if isinstance(value, bytes) else _NUMBER_BYTES


class MetricRecord(_ValueRecord[MetricRecordValues]):
    """Named numbers: int, float, and lists of one of them. Integers fit 64 bits.

    >>> MetricRecord({"num-examples": 120, "loss": 0.25})["loss"]
    0.25
    """

    __slots__ = ()

    _SCALARS = (int, float)


class ConfigRecord(_ValueRecord[ConfigRecordValues]):
    """Named settings: bool, int, float, str, bytes, and lists of one of them. Integers fit 64 bits.

    >>> ConfigRecord({"lr": 0.1, "layers": ["a", "b"]})["layers"]
    ['a', 'b']
    """

    __slots__ = ()

    _SCALARS = (bool, int, float, str, bytes)


Record = ArrayRecord | MetricRecord | ConfigRecord
R = TypeVar("R", bound=Record)


class RecordDict(TypedMapping[Record]):
    """The content of a message: named records.

    >>> content = RecordDict({"metrics": MetricRecord({"loss": 0.5}), "config": ConfigRecord({"lr": 0.1})})
    >>> list(content.metric_records)
    ['metrics']
    """

    __slots__ = ()

    def __init__(self, records: Mapping[str, Record] | None = None) -> None:
        super().__init__()
        for name, record in (records or {}).items():
            self[name] = record

    def _checked(self, key: str, value: Record) -> Record:
        if not isinstance(value, ArrayRecord | MetricRecord | ConfigRecord):
            raise TypeError(f"a RecordDict holds records; {key!r} is {type(value).__name__}")
        return value

    @property
    def array_records(self) -> MutableMapping[str, ArrayRecord]:
        """A live view of the ArrayRecords."""
        return _View(self, ArrayRecord)

    @property
    def metric_records(self) -> MutableMapping[str, MetricRecord]:
        """A live view of the MetricRecords."""
        return _View(self, MetricRecord)

    @property
    def config_records(self) -> MutableMapping[str, ConfigRecord]:
        """A live view of the ConfigRecords."""
        return _View(self, ConfigRecord)

    parameters_records = array_records
    metrics_records = metric_records
    configs_records = config_records

    def count_bytes(self) -> int:
        """The size of all records and names in bytes."""
        return sum(len(name.encode()) + record.count_bytes() for name, record in self.items())


class _View(MutableMapping[str, R]):
    """Those records of a RecordDict that are of one type."""

    def __init__(self, content: RecordDict, kind: type[R]) -> None:
        self._content = content
        self._kind = kind

    def __getitem__(self, key: str) -> R:
        record = self._content[key]
        if not isinstance(record, self._kind):
            raise KeyError(key)
        return record

    def __setitem__(self, key: str, record: R) -> None:
        if not isinstance(record, self._kind):
            raise TypeError(f"{key!r} is {type(record).__name__}, not {self._kind.__name__}")
        self._content[key] = record

    def __delitem__(self, key: str) -> None:
        self[key]  # a record of another type is not here
        del self._content[key]

    def __iter__(self) -> Iterator[str]:
        return iter([key for key, record in self._content.items() if isinstance(record, self._kind)])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"{dict(self)!r}"


ParametersRecord = ArrayRecord
MetricsRecord = MetricRecord
ConfigsRecord = ConfigRecord
RecordSet = RecordDict
