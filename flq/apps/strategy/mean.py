"""Weighted means that are folded one model at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flq.wire.records import Array, ArrayRecord

_BLOCK = 1 << 16
"""Elements that are worked on at a time: what lies between stays in the processor's cache."""


class WeightedMean:
    """The mean of models, each counted by its weight, as in McMahan et al. (2017), algorithm 1.

    It is folded in place, m += (w / W) (x - m) with W the sum of the weights so far: memory is one accumulator,
    whatever the number of models; equal models give exactly themselves, and so does a single one. It accumulates in
    float64 (complex128 for complex dtypes) and returns the dtypes that came in: 8 bytes for each element while it
    is folded. With float32 models the error is that of the last rounding, so that the order hardly matters.
    Integers and bools are rounded to the nearest one; beyond 2^53 they are not exact.

    >>> mean = WeightedMean()
    >>> mean.add({"w": np.float32([1, 3])}, weight=1)
    >>> mean.add({"w": np.float32([5, 3])}, weight=3)
    >>> mean.finish()["w"].numpy()
    array([4., 3.], dtype=float32)
    """

    def __init__(self) -> None:
        self._total = 0.0
        self._means: dict[str, NDArray[Any]] = {}
        self._kinds: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}

    def add(self, arrays: Mapping[str, NDArray[Any]], weight: float) -> None:
        """Fold a model of C-contiguous arrays in; all models MUST have the same keys, shapes and dtypes."""
        self._total += weight
        share = weight / self._total
        for key, array in arrays.items():
            if key not in self._means:
                wide = np.complex128 if array.dtype.kind == "c" else np.float64
                self._means[key] = np.zeros(array.size, wide)
                self._kinds[key] = array.dtype, array.shape
            _fold(self._means[key], array.reshape(-1), share)

    def finish(self) -> ArrayRecord:
        """The mean. The accumulator is given up on the way."""
        record = ArrayRecord()
        for key in list(self._means):
            dtype, shape = self._kinds[key]
            record[key] = Array.owning(_narrowed(self._means.pop(key), dtype).reshape(shape))
        return record


def _fold(mean: NDArray[Any], model: NDArray[Any], share: float) -> None:
    scratch = np.empty(min(_BLOCK, mean.size), mean.dtype)
    with np.errstate(all="ignore"):  # infinities are for the caller to find
        for start in range(0, mean.size, _BLOCK):
            part = mean[start : start + _BLOCK]
            difference = scratch[: part.size]
            np.subtract(model[start : start + _BLOCK], part, out=difference, dtype=mean.dtype)
            np.multiply(difference, share, out=difference)
            part += difference


def _narrowed(mean: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        np.rint(mean, out=mean)
        # the largest 64-bit integers are no float64; the next one up does not fit
        highest = limits.max if float(limits.max) <= limits.max else np.nextafter(float(limits.max), 0)
        np.clip(mean, limits.min, highest, out=mean)
    elif dtype.kind == "b":
        np.rint(mean, out=mean)
    with np.errstate(all="ignore"):
        return mean.astype(dtype, copy=False)
