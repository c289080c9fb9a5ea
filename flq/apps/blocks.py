"""Work on large arrays: part by part on several threads, block by block within the processor's cache.

What is done to a part does not depend on how many threads there are, so that results are the same to the bit.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 16
"""Elements that are worked on at a time: what lies between stays in the processor's cache."""

PART = 2 * BLOCK
"""Elements that one thread takes at a time: so few that no thread has to wait long for the others at an array's end."""

MOST_THREADS = 8
"""More of them would wait for the memory."""

_HUGE_PAGE = 2 << 20
"""In bytes, of the memory pages that numpy asks Linux for when an array has two of them or more."""

S = TypeVar("S")
T = TypeVar("T")


def available_threads() -> int:
    """How many threads this process has processors for, at most `MOST_THREADS`."""
    affinity = getattr(os, "sched_getaffinity", None)
    return min(len(affinity(0)) if affinity else os.cpu_count() or 1, MOST_THREADS)


class Workers:
    """Threads that work on the parts of arrays, the caller's among them. numpy holds no interpreter lock meanwhile."""

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._own = _Scratch()

    def each(self, items: Sequence[S], work: Callable[[S], T]) -> list[T]:
        """Do `work` on all items, each on the thread that is free first; returns what it returned, in their order."""
        helpers = min(self._threads, len(items)) - 1
        if helpers <= 0:
            return [work(item) for item in items]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads - 1, "flq-arrays")
        open_items, done = deque(enumerate(items)), dict[int, T]()
        busy = [self._pool.submit(_work_off, open_items, done, work) for _ in range(helpers)]
        try:
            _work_off(open_items, done, work)
        finally:
            open_items.clear()  # after an error nobody begins another one
            for helper in busy:
                helper.result()
        return [done[index] for index in range(len(items))]

    def each_part(self, size: int, work: Callable[[slice], T]) -> list[T]:
        """Do `work` on all parts of an array of so many elements; returns what it returned, in order of the parts."""
        return self.each(list(parts(size)), work)

    def scratch(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Room for a block, with anything in it: the calling thread's own, the same one each time it asks."""
        found = self._own.blocks.get(dtype)
        if found is None:
            found = self._own.blocks[dtype] = np.empty(BLOCK, dtype)
        return found

    def close(self) -> None:
        """End the threads; they come back when they are needed."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


class _Scratch(threading.local):
    """What each thread has for itself."""

    def __init__(self) -> None:
        self.blocks: dict[np.dtype[Any], NDArray[Any]] = {}


def _work_off(open_items: deque[tuple[int, S]], done: dict[int, T], work: Callable[[S], T]) -> None:
    while True:
        try:
            index, item = open_items.popleft()
        except IndexError:
            return
        done[index] = work(item)


def parts(size: int) -> Iterator[slice]:
    """An array of so many elements in slices of at most `PART`."""
    return blocks(slice(0, size), size=PART)


def blocks(part: slice, *, size: int = BLOCK) -> Iterator[slice]:
    """A part in slices of at most `size` elements."""
    for start in range(part.start, part.stop, size):
        yield slice(start, min(start + size, part.stop))


def room(size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """A new array of so many elements, with anything in it; if it is large, it begins where a huge page does.

    The system hands memory out page by page as it is first written to, which for small pages takes longer than to
    fold a model in. What lies before the array costs addresses only, what lies behind it at most the rest of a page.
    """
    nbytes = size * dtype.itemsize
    if nbytes < 2 * _HUGE_PAGE:
        return np.empty(size, dtype)
    raw = np.empty(nbytes + _HUGE_PAGE, np.uint8)
    start = -int(raw.__array_interface__["data"][0]) % _HUGE_PAGE
    return raw[start : start + nbytes].view(dtype)


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
