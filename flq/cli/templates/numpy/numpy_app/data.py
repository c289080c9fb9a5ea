"""The data. Replace this file by your own: on a real node it reads what lies there, and nobody else ever sees it.

Here it is made up: points in ten dimensions, which a rule that the model has to find puts into one of two classes.
Every partition lies in a region of its own, so that no node alone sees the whole picture.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FEATURES = 10

Points = NDArray[np.float64]
"""One row for each example: (examples, FEATURES)."""

Labels = NDArray[np.float64]
"""0.0 or 1.0 for each example."""


def partition(partition_id: int, *, seed: int, examples: int = 400) -> tuple[Points, Labels]:
    """The examples of one node. The same numbers give the same examples, so that a run can be repeated."""
    rng = np.random.default_rng([seed, 1, partition_id])
    center = rng.normal(size=FEATURES)
    points = center + rng.normal(size=(examples, FEATURES))
    return points, _labels(points, rng, seed)


def held_out(*, seed: int, examples: int = 2000) -> tuple[Points, Labels]:
    """Examples from everywhere that no node has: what the server measures the model on."""
    rng = np.random.default_rng([seed, 2])
    points = rng.normal(scale=2**0.5, size=(examples, FEATURES))
    return points, _labels(points, rng, seed)


def _labels(points: Points, rng: np.random.Generator, seed: int) -> Labels:
    """The rule, with some noise on it."""
    rule = np.random.default_rng([seed, 0]).normal(size=FEATURES)
    noise = rng.normal(scale=0.5, size=len(points))
    return (points @ rule + noise > 0).astype(np.float64)
