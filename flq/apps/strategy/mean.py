"""Weighted means that are folded one model at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flq.apps.blocks import Workers, blocks, finite, narrowed, parts, room, working_dtype
from flq.errors import StrategyError
from flq.wire.records import Array, ArrayRecord


class NotFinite(StrategyError):
    """What models are folded to has NaN or infinite values."""

    code = "not_finite"


class WeightedMean:
    """The mean of models, each counted by its weight, as in McMahan et al. (2017), algorithm 1.

    It is folded in place, m += (w / W) (x - m) with W the sum of the weights so far: memory is one accumulator,
    whatever the number of models; equal models give exactly themselves, and so does a single one. It returns the
    dtypes that came in.

    Parameters
    ----------
    float64
        Accumulate in float64 (complex128): 8 bytes for each element while it is folded. Then the error of float32
        models is that of the last rounding, so that the order hardly matters. Otherwise float32 and float16 are
        accumulated in float32, with an error of about 1e-7 of the largest value for each model. Integers and bools are
        always accumulated in float64, and rounded to the nearest one; beyond 2^53 they are not exact.
    threads
        How many threads work on large models; the result does not depend on it.

    >>> mean = WeightedMean()
    >>> mean.add({"w": np.float32([1, 3])}, 1)
    >>> mean.add({"w": np.float32([5, 3])}, 3)
    >>> mean.finish()["w"].numpy()
    array([4., 3.], dtype=float32)

    """

    def __init__(self, *, float64: bool = False, threads: int = 1) -> None:
        self._float64 = float64
        self._workers = Workers(threads)
        self._total = 0.0
        self._means: dict[str, NDArray[Any]] = {}
        self._kinds: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}

    def add(self, arrays: Mapping[str, NDArray[Any]], weight: float, /) -> None:
        """Fold a model of C-contiguous arrays in; all models MUST have the same keys, shapes and dtypes.

        Arrays are looked up one after the other, and none is held.
        """
        share = self._share(weight)
        for key in arrays:
            array = arrays[key]
            self._fold({key: [array.reshape(-1)]}, [share], fresh=self._begin(key, array))

    def add_all(self, models: Sequence[tuple[Mapping[str, NDArray[Any]], float]], /) -> None:
        """Fold several models in, each with its weight, that are in memory: to the bit as if `add` took one by one.

        It is faster: a block of the mean stays in the processor's cache while all models are folded into it.
        """
        if not models:
            return
        shares, first = [self._share(weight) for _, weight in models], models[0][0]
        fresh = [self._begin(key, array) for key, array in first.items()]
        self._fold({key: [arrays[key].reshape(-1) for arrays, _ in models] for key in first}, shares, fresh=any(fresh))

    def _share(self, weight: float) -> float:
        self._total += weight
        return weight / self._total

    def _begin(self, key: str, array: NDArray[Any]) -> bool:
        """Make room for the mean of an array, unless there is; returns whether it was made."""
        if key in self._means:
            return False
        self._kinds[key] = array.dtype, array.shape
        self._means[key] = room(array.size, working_dtype(array.dtype, float64=self._float64))
        return True

    def _fold(self, layers: Mapping[str, list[NDArray[Any]]], shares: list[float], *, fresh: bool) -> None:
        """Fold into the mean of each array the models' ones, in their order; a fresh mean begins as the first."""

        def fold(place: tuple[str, slice]) -> None:
            key, part = place
            mean = self._means[key]
            scratch = self._workers.scratch(mean.dtype)
            with np.errstate(all="ignore"):  # `finish` looks for what overflows
                for block in blocks(part):
                    _fold_block(mean[block], [layer[block] for layer in layers[key]], shares, scratch, fresh=fresh)

        self._workers.each([(key, part) for key, (first, *_) in layers.items() for part in parts(first.size)], fold)

    def finish(self) -> ArrayRecord:
        """The mean; the accumulator is given up on the way.

        Raises `NotFinite` if it is not finite, which finite models lead to only if their values are close to the
        largest of their dtype.
        """
        self._check()
        record = ArrayRecord()
        for key in list(self._means):
            dtype, shape = self._kinds[key]
            record[key] = Array.owning(narrowed(self._means.pop(key), dtype).reshape(shape))
        self._workers.close()
        return record

    def _check(self) -> None:
        for key, mean in self._means.items():
            if not finite(mean, self._workers):
                raise NotFinite(
                    f"the mean of the array {key!r} is not finite: its values are too large to be added up",
                    hint="float64_accumulator=True adds them up in float64",
                )


def _fold_block(
    mean: NDArray[Any], models: list[NDArray[Any]], shares: list[float], scratch: NDArray[Any], *, fresh: bool
) -> None:
    difference = scratch[: mean.size]
    for index, (model, share) in enumerate(zip(models, shares, strict=True)):
        if fresh and index == 0:
            np.copyto(mean, model)
            continue
        np.subtract(model, mean, out=difference, dtype=mean.dtype)
        np.multiply(difference, share, out=difference)
        np.add(mean, difference, out=mean)
