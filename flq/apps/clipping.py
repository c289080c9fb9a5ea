"""Clipping of model updates and Gaussian noise: the arithmetic of differential privacy.

The update of a node is the difference between the model that it returns and the one that it got. Arrays are worked on
in blocks, in float64; integers count like other numbers, and what is added to them is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flq.apps.blocks import blocks, narrowed
from flq.wire.records import Array, ArrayRecord

CLIPPING_NORM = "clipping_norm"
"""The key of a config: what the norm of an update is clipped to."""

NORM_BIT = "norm_bit"
"""The key of a metric: 1 if the node has clipped its update, 0 if it was short enough."""


def update_norm(model: ArrayRecord, start: ArrayRecord) -> float:
    """The L2 norm of the update from `start` to `model`, over all arrays; they MUST have the same names and shapes."""
    squares = 0.0
    for key, array in model.items():
        ours, theirs = start[key].view().reshape(-1), array.view().reshape(-1)
        for block in blocks(slice(0, ours.size)):
            difference = np.subtract(theirs[block], ours[block], dtype=np.float64)
            squares += float(np.dot(difference, difference))
    return math.sqrt(squares)


def clipped(model: ArrayRecord, start: ArrayRecord, norm: float) -> tuple[ArrayRecord, bool]:
    """`model` with its update from `start` scaled down to the L2 norm `norm`, and whether it had to be.

    As in Geyer et al. (2017), "Differentially Private Federated Learning: A Client Level Perspective",
    https://arxiv.org/abs/1712.07557: the update is divided by max(1, its norm / `norm`). A model that is close enough
    is returned as it is; so is one that is not finite, which is for others to refuse.
    """
    found = update_norm(model, start)
    if not found > norm:
        return model, False
    share = norm / found

    def towards(key: str) -> Callable[[NDArray[Any], slice], NDArray[Any]]:
        ours = start[key].view().reshape(-1)
        whole = ours.dtype.kind in "iub"

        def shorten(theirs: NDArray[Any], block: slice) -> NDArray[Any]:
            update = np.subtract(theirs, ours[block], dtype=np.float64)
            update *= share
            if whole:  # rounded up, it would be longer than it may be
                np.trunc(update, out=update)
            return np.asarray(ours[block] + update)

        return shorten

    return ArrayRecord({key: _changed(array, towards(key)) for key, array in model.items()}), True


def noisy(model: ArrayRecord, deviation: float, generator: np.random.Generator) -> ArrayRecord:
    """`model` with independent Gaussian noise of this standard deviation added to each element."""
    if deviation == 0:
        return model

    def add(values: NDArray[Any], _block: slice) -> NDArray[Any]:
        return values + generator.normal(0.0, deviation, values.size)

    return ArrayRecord({key: _changed(array, add) for key, array in model.items()})


def _changed(array: Array, change: Callable[[NDArray[Any], slice], NDArray[Any]]) -> Array:
    """The array with each block as `change` makes it of it, in the dtype that it has."""
    before = array.view().reshape(-1)
    after = np.empty_like(before)
    with np.errstate(over="ignore"):
        for block in blocks(slice(0, before.size)):
            after[block] = narrowed(change(before[block], block), before.dtype)
    return Array.owning(after.reshape(array.shape))
