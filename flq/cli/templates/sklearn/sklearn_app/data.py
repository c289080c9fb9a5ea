"""The data. Replace this file by your own: on a real node it reads what lies there, and nobody else ever sees it.

Here it is a part of the 1,797 handwritten digits that come with scikit-learn. A fifth is held out for the server.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

Images = NDArray[np.float64]
"""One row of 64 pixels, from 0 to 1, for each example."""

Labels = NDArray[np.int64]
"""A digit for each example."""


def partition(partition_id: int, num_partitions: int, *, seed: int) -> tuple[Images, Labels]:
    """The examples of one node of many: each has its own, and together they have all."""
    images, labels = _shuffled(seed)
    rest = slice(len(labels) // 5 + partition_id, None, num_partitions)
    return images[rest], labels[rest]


def held_out(*, seed: int) -> tuple[Images, Labels]:
    """The fifth that no node has: what the server measures the model on."""
    images, labels = _shuffled(seed)
    return images[: len(labels) // 5], labels[: len(labels) // 5]


def _shuffled(seed: int) -> tuple[Images, Labels]:
    """All examples, in the same order on all nodes."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    return images[order] / 16, labels[order]
