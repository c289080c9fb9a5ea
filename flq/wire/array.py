"""One array of a message: immutable bytes with a dtype and a shape, in memory or still in the object store."""

from __future__ import annotations

import hashlib
import io
import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self, cast, overload

import numpy as np
from numpy.typing import NDArray

from flq.errors import CodecError
from flq.wire.ids import ObjectHash

if TYPE_CHECKING:
    import torch

NUMPY_STYPE = "numpy.ndarray"
"""The serialisation type of arrays that flq understands; others travel as opaque bytes."""

DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(name).newbyteorder("<")
    for name in (
        "bool",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "float16",
        "float32",
        "float64",
        "complex64",
        "complex128",
    )
}
"""The dtypes that may travel, little-endian. Nothing with pointers in it is ever among them."""

Load = Callable[[], memoryview]
"""Brings an array's bytes into a buffer that nobody else holds."""


class Array:
    """An array of fixed content, little-endian and C-contiguous.

    `Array(ndarray)` and `Array(torch_tensor)` take a snapshot, so that later writes to the source change nothing.
    `Array(dtype=..., shape=..., stype=..., data=...)` takes a serialised array; for the stype `numpy.ndarray`
    `data` are the bytes of an `.npy` file, other stypes travel as opaque bytes.

    An array that was received holds no bytes: each touch of them reads them from where they are stored, so that
    memory holds what is in use and no more. `load()` keeps them in memory until `drop()`.

    Raises `TypeError` for dtypes that cannot travel (objects, strings, dates, bfloat16, masked arrays) and `ValueError`
    if `data` is not the array that dtype and shape announce.

    >>> array = Array(np.arange(3, dtype=np.float32))
    >>> array.dtype, array.shape, array.nbytes
    ('float32', (3,), 12)
    """

    __slots__ = ("_apart", "_digest", "_dtype", "_held", "_load", "_nbytes", "_shape", "_stype")

    _dtype: str
    _shape: tuple[int, ...]
    _stype: str
    _nbytes: int
    _held: NDArray[Any] | None
    _load: Load | None
    _digest: ObjectHash | None
    _apart: bool

    @overload
    def __init__(self, ndarray: NDArray[Any], /) -> None: ...
    @overload
    def __init__(self, torch_tensor: torch.Tensor, /) -> None: ...
    @overload
    def __init__(self, *, ndarray: NDArray[Any]) -> None: ...
    @overload
    def __init__(self, *, torch_tensor: torch.Tensor) -> None: ...
    @overload
    def __init__(self, dtype: str, shape: tuple[int, ...], stype: str, data: bytes) -> None: ...

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if len(args) == len(_SERIALISED):
            kwargs, args = {**kwargs, **dict(zip(_SERIALISED, args, strict=True))}, ()
        if kwargs.keys() == set(_SERIALISED) and not args:
            self._init_serialised(**kwargs)
            return
        source = [*args, *kwargs.values()]
        if len(source) != 1 or kwargs.keys() - {"ndarray", "torch_tensor"}:
            raise TypeError("an Array is made from one ndarray, one torch tensor, or dtype, shape, stype and data")
        self._hold(canonical(_as_ndarray(source[0]), copy=True))

    def _init_serialised(self, dtype: str, shape: tuple[int, ...], stype: str, data: bytes) -> None:
        if not isinstance(dtype, str) or not isinstance(stype, str) or not isinstance(data, bytes | bytearray):
            raise TypeError("dtype and stype are str, data is bytes")
        shape = tuple(int(size) for size in shape)
        if stype != NUMPY_STYPE:
            self._hold(np.frombuffer(bytes(data), np.uint8), dtype=dtype, shape=shape, stype=stype)
            return
        array = canonical(_read_npy(data), copy=False)
        if (array.dtype.name, array.shape) != (np.dtype(dtype).name, shape):
            raise ValueError(f"data holds {array.dtype.name} {array.shape}, announced is {dtype} {shape}")
        self._hold(array)

    def _hold(
        self,
        held: NDArray[Any],
        *,
        dtype: str | None = None,
        shape: tuple[int, ...] | None = None,
        stype: str = NUMPY_STYPE,
    ) -> None:
        self._dtype = dtype if dtype is not None else held.dtype.name
        self._shape = shape if shape is not None else held.shape
        self._stype = stype
        self._nbytes = held.nbytes
        self._held = held
        self._load = None
        self._digest = None
        self._apart = False

    @classmethod
    def from_numpy_ndarray(cls, ndarray: NDArray[Any]) -> Self:
        """An Array with a snapshot of `ndarray`."""
        return cls(ndarray)

    @classmethod
    def from_torch_tensor(cls, tensor: torch.Tensor) -> Self:
        """An Array with a snapshot of `tensor`, copied to the CPU if it is elsewhere."""
        return cls(tensor)

    @classmethod
    def owning(cls, ndarray: NDArray[Any], *, apart: bool = False) -> Self:
        """Take `ndarray` over without a copy if it is contiguous; nobody may write to it any more. See `apart`."""
        held = canonical(ndarray, copy=False)
        return cls._blank(dtype=held.dtype.name, shape=held.shape, nbytes=held.nbytes, held=held, apart=apart)

    @classmethod
    def lazy(
        cls,
        *,
        dtype: str,
        shape: tuple[int, ...],
        load: Load,
        stype: str = NUMPY_STYPE,
        nbytes: int | None = None,
        digest: ObjectHash | None = None,
        apart: bool = False,
    ) -> Self:
        """An Array whose bytes `load` brings when they are needed; it MUST return a private, writable buffer.

        `nbytes` is needed for a foreign stype only. `digest` is the sha256 of the bytes, if it is known.
        """
        size = math.prod(shape) * DTYPES[dtype].itemsize if nbytes is None else nbytes
        return cls._blank(dtype=dtype, shape=shape, nbytes=size, stype=stype, load=load, digest=digest, apart=apart)

    @classmethod
    def _blank(cls, *, stype: str = NUMPY_STYPE, **slots: Any) -> Self:
        array = cls.__new__(cls)
        for name, value in (
            {"stype": stype, "held": None, "load": None, "digest": None, "apart": False} | slots
        ).items():
            setattr(array, f"_{name}", value)
        return array

    @property
    def dtype(self) -> str:
        """The dtype's name, for example `float32`."""
        return self._dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each axis."""
        return self._shape

    @property
    def stype(self) -> str:
        """How `data` is serialised: `numpy.ndarray`, or what the app chose."""
        return self._stype

    @property
    def nbytes(self) -> int:
        """The size of the raw buffer in bytes."""
        return self._nbytes

    @property
    def apart(self) -> bool:
        """Whether it is an object of its own in every message, however small: one that many messages have.

        It is said when the array is made, and does not travel.
        """
        return self._apart

    @property
    def loaded(self) -> bool:
        """Whether the bytes are in memory."""
        return self._held is not None

    @property
    def data(self) -> bytes:
        """The array as the bytes of an `.npy` file, rendered anew each time; opaque bytes as they are."""
        if self._stype != NUMPY_STYPE:
            return self._bytes().tobytes()
        file = io.BytesIO()
        np.lib.format.write_array(file, self._read(), allow_pickle=False)
        return file.getvalue()

    @property
    def digest(self) -> ObjectHash:
        """The sha256 of the raw bytes, computed once."""
        if self._digest is None:
            self._digest = ObjectHash(hashlib.sha256(self.buffer()).digest())
        return self._digest

    def numpy(self) -> NDArray[Any]:
        """The array, writable and the caller's own.

        A received array is read from its store without a copy, each time anew; others are copied.
        """
        self._check_numpy()
        if self._held is not None:
            return self._held.copy()
        array = self._read()
        return array if array.flags.writeable else array.copy()

    def torch(self) -> torch.Tensor:
        """The array as a torch tensor on the CPU, the caller's own."""
        import torch

        return torch.from_numpy(self.numpy())

    def view(self) -> NDArray[Any]:
        """The array, read-only; without a copy if it is in memory."""
        self._check_numpy()
        view = self._read().view()
        view.flags.writeable = False
        return view

    def buffer(self) -> memoryview:
        """The raw bytes, read-only; without a copy if they are in memory."""
        return self._bytes().data.toreadonly()

    def load(self) -> None:
        """Keep the bytes in memory until `drop`."""
        self._held = self._read()

    def drop(self) -> None:
        """Forget the bytes if they can be read again."""
        if self._load is not None:
            self._held = None

    def _check_numpy(self) -> None:
        if self._stype != NUMPY_STYPE:
            raise TypeError(f"an array of stype {self._stype!r} is opaque: read its bytes from `data`")

    def _read(self) -> NDArray[Any]:
        if self._held is not None:
            return self._held
        if self._load is None:  # pragma: no cover - the constructors set one of both
            raise AssertionError
        raw = np.frombuffer(self._load(), np.uint8)
        if raw.nbytes != self._nbytes:
            raise CodecError(f"{raw.nbytes} bytes came for an array of {self._nbytes}")
        if self._stype != NUMPY_STYPE:
            return raw
        if self._dtype == "bool" and raw.size and raw.max() > 1:
            raise CodecError("a bool array holds bytes other than 0 and 1")
        return raw.view(DTYPES[self._dtype]).reshape(self._shape)

    def _bytes(self) -> NDArray[np.uint8]:
        return cast("NDArray[np.uint8]", self._read().reshape(-1).view(np.uint8))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Array):
            return NotImplemented
        if (self._dtype, self._shape, self._stype) != (other._dtype, other._shape, other._stype):
            return False
        if self._digest is not None and self._digest == other._digest:
            return True
        return np.array_equal(self._bytes(), other._bytes())

    __hash__ = None  # type: ignore[assignment]  # compares by content, so it is no key

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _memo: object) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self._stype == NUMPY_STYPE:
            return Array.owning, (np.array(self._read()),)
        return Array, (self._dtype, self._shape, self._stype, self.data)

    def __repr__(self) -> str:
        where = "" if self.loaded else ", not loaded"
        return f"Array({self._dtype}, shape={self._shape}{where})"


_SERIALISED = ("dtype", "shape", "stype", "data")


def canonical(source: NDArray[Any], *, copy: bool) -> NDArray[Any]:
    """`source` as a little-endian C-contiguous array; the same object if it is one and `copy` is false.

    Raises `TypeError` for dtypes that cannot travel.
    """
    if isinstance(source, np.ma.MaskedArray):
        raise TypeError("masked arrays cannot travel: fill the masked values first")
    dtype = DTYPES.get(source.dtype.name)
    if dtype is None:
        raise TypeError(f"arrays of dtype {source.dtype} cannot travel; known ones: {', '.join(DTYPES)}")
    # np.ascontiguousarray would turn a 0-d array into a 1-d one
    return np.array(source, dtype=dtype, order="C", copy=True if copy else None, subok=False)


def _as_ndarray(source: object) -> NDArray[Any]:
    if isinstance(source, np.ndarray):
        return source
    if is_torch_tensor(source):
        try:
            return cast("NDArray[Any]", cast("Any", source).detach().cpu().numpy())
        except TypeError as exc:
            raise TypeError(f"this torch tensor cannot travel: {exc}; convert it first, as with .float()") from exc
    raise TypeError(f"an Array is made from an ndarray or a torch tensor, not from {type(source).__name__}")


def is_torch_tensor(value: object) -> bool:
    """Whether `value` is a torch tensor; never imports torch."""
    torch_module = sys.modules.get("torch")
    return torch_module is not None and isinstance(value, torch_module.Tensor)


def _read_npy(data: bytes | bytearray) -> NDArray[Any]:
    try:
        return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as exc:
        raise ValueError(f"data is no .npy file: {exc}") from exc
