"""Arrays to bytes and back, as legacy clients and strategies pass them on."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import numpy as np

from flq.apps.legacy.typing import NDArray, NDArrays, Parameters
from flq.wire.array import NUMPY_STYPE
from flq.wire.records import Array, ArrayRecord


def ndarrays_to_parameters(ndarrays: NDArrays) -> Parameters:
    """A model in bytes, each array in the format `.npy`."""
    return Parameters([ndarray_to_bytes(ndarray) for ndarray in ndarrays], NUMPY_STYPE)


def parameters_to_ndarrays(parameters: Parameters) -> NDArrays:
    """The arrays of a model in bytes. Raises `ValueError` for bytes that are no `.npy`."""
    return [bytes_to_ndarray(tensor) for tensor in parameters.tensors]


def ndarray_to_bytes(ndarray: NDArray) -> bytes:
    """An array in the format `.npy`. Raises `ValueError` for one of Python objects."""
    buffer = io.BytesIO()
    np.save(buffer, ndarray, allow_pickle=False)
    return buffer.getvalue()


def bytes_to_ndarray(tensor: bytes) -> NDArray:
    """The array of a `.npy`. Raises `ValueError` for anything else; nothing is unpickled."""
    try:
        loaded: NDArray = np.load(io.BytesIO(tensor), allow_pickle=False)
    except (EOFError, OSError) as exc:
        raise ValueError(f"these {len(tensor)} bytes are no .npy file: {exc}") from exc
    return loaded


def array_from_numpy(ndarray: NDArray) -> Array:
    """The same as `Array(ndarray)`."""
    return Array(ndarray)


def parameters_to_arrayrecord(parameters: Parameters) -> ArrayRecord:
    """A model in bytes as a record: numpy arrays travel as such, anything else as the bytes it is."""
    if parameters.tensor_type == NUMPY_STYPE:
        return ArrayRecord(parameters_to_ndarrays(parameters))
    kind = parameters.tensor_type
    return ArrayRecord(
        {str(place): Array("", (), kind or OPAQUE, tensor) for place, tensor in enumerate(parameters.tensors)}
    )


def arrayrecord_to_parameters(record: ArrayRecord) -> Parameters:
    """The model of a record in bytes, in the record's order."""
    kinds = {array.stype for array in record.values()} or {NUMPY_STYPE}
    if len(kinds) > 1:
        raise ValueError(f"the arrays of a model are of one kind; these are {', '.join(sorted(kinds))}")
    kind = kinds.pop()
    return Parameters([array.data for array in record.values()], "" if kind == OPAQUE else kind)


OPAQUE = "bytes"
"""What arrays are called whose parameters have no tensor type."""


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)
