"""Work on large arrays: part by part on several threads, block by block within the processor's cache.

What is done to a part does not depend on how many threads there are, so that results are the same to the bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 16
"""Elements that are worked on at a time: what lies between stays in the processor's cache."""

PART = 4 * BLOCK
"""Elements that one thread takes at a time."""

MOST_THREADS = 8
"""More of them would wait for the memory."""

T = TypeVar("T")


def available_threads() -> int:
    """How many threads this process has processors for, at most `MOST_THREADS`."""
    affinity = getattr(os, "sched_getaffinity", None)
    return min(len(affinity(0)) if affinity else os.cpu_count() or 1, MOST_THREADS)


class Workers:
    """Threads that work on the parts of an array. numpy does not hold the interpreter's lock meanwhile."""

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None

    def each_part(self, size: int, work: Callable[[slice], T]) -> list[T]:
        """Do `work` on all parts of an array of so many elements; returns what it returned, in order of the parts."""
        parts = [slice(start, min(start + PART, size)) for start in range(0, size, PART)]
        if self._threads <= 1 or len(parts) <= 1:
            return [work(part) for part in parts]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, "flq-arrays")
        return list(self._pool.map(work, parts))

    def close(self) -> None:
        """End the threads; they come back when they are needed."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def blocks(part: slice, *, size: int = BLOCK) -> Iterator[slice]:
    """A part in slices of at most `size` elements."""
    for start in range(part.start, part.stop, size):
        yield slice(start, min(start + size, part.stop))


def finite(array: NDArray[Any], workers: Workers | None = None) -> bool:
    """Whether a C-contiguous array has neither NaN nor infinite values."""
    if array.dtype.kind not in "fc":
        return True
    flat = array.reshape(-1)
    return all((workers or Workers()).each_part(flat.size, lambda part: _finite(flat[part])))


def _finite(array: NDArray[Any]) -> bool:
    with np.errstate(all="ignore"):
        # A sum is finite only if all its terms are, and it is the fastest way through them; a large sum may overflow.
        if np.isfinite(np.add.reduce(array)):
            return True
        return all(np.isfinite(array[block]).all() for block in blocks(slice(0, array.size)))


def narrowed(wide: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """`wide` as `dtype`, integers and bools rounded to the nearest one; may change `wide`, and may return it."""
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        np.rint(wide, out=wide)
        # the largest 64-bit integers are no float64; the next one up does not fit
        highest = limits.max if float(limits.max) <= limits.max else np.nextafter(float(limits.max), 0)
        np.clip(wide, limits.min, highest, out=wide)
    elif dtype.kind == "b":
        np.rint(wide, out=wide)
    with np.errstate(all="ignore"):
        return wide.astype(dtype, copy=False)


def working_dtype(dtype: np.dtype[Any], *, float64: bool) -> np.dtype[Any]:
    """In which dtype arrays of `dtype` are worked on: float32 stays so unless `float64`, integers never suffice."""
    if dtype.kind == "c":
        return np.dtype(np.complex128 if float64 or dtype.itemsize > np.dtype(np.complex64).itemsize else np.complex64)
    small = dtype.kind == "f" and dtype.itemsize <= np.dtype(np.float32).itemsize
    return np.dtype(np.float32 if small and not float64 else np.float64)
