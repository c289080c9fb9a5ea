"""The data: 1,797 images of 8 x 8 pixels, a fifth held out for the server, the rest split over the nodes."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

CLASSES = 10
FEWEST = 8
"""Every node gets at least so many images."""

Images = NDArray[np.float32]
Labels = NDArray[np.int64]
Indices = NDArray[np.intp]


@cache
def load() -> tuple[Images, Labels]:
    """All images, pixels from 0 to 1, and their labels."""
    images, labels = load_digits(return_X_y=True)
    return (images / 16).astype(np.float32), labels.astype(np.int64)


def held_out(seed: int) -> tuple[Images, Labels]:
    """The fifth that no node sees."""
    images, labels = load()
    test, _ = _split(seed)
    return images[test], labels[test]


def partition(index: int, count: int, *, alpha: float, seed: int) -> tuple[Images, Labels]:
    """The images of node `index` of `count`: for each digit, shares drawn from a Dirichlet distribution."""
    images, labels = load()
    mine = _partitions(count, alpha, seed)[index]
    return images[mine], labels[mine]


@cache
def _split(seed: int) -> tuple[Indices, Indices]:
    """The held-out fifth and the rest, the same part of every digit."""
    _, labels = load()
    rng = np.random.default_rng([seed, 0])
    test = []
    for digit in range(CLASSES):
        members = rng.permutation(np.flatnonzero(labels == digit))
        test.append(members[: round(len(members) / 5)])
    chosen = np.sort(np.concatenate(test))
    return chosen, np.setdiff1d(np.arange(len(labels)), chosen)


@cache  # a process hosts many nodes
def _partitions(count: int, alpha: float, seed: int) -> list[Indices]:
    """The images of each node, disjoint and complete."""
    _, rest = _split(seed)
    labels = load()[1][rest]
    rng = np.random.default_rng([seed, 1, count])
    parts: list[list[Indices]] = [[] for _ in range(count)]
    for digit in range(CLASSES):
        members = rng.permutation(np.flatnonzero(labels == digit))
        cuts = np.round(np.cumsum(rng.dirichlet(np.full(count, alpha)))[:-1] * len(members)).astype(int)
        for part, piece in zip(parts, np.split(members, cuts), strict=True):
            part.append(piece)
    enough = _at_least([np.sort(np.concatenate(part)) for part in parts], min(FEWEST, len(labels) // count))
    return [rest[part] for part in enough]


def _at_least(parts: list[Indices], fewest: int) -> list[Indices]:
    """Let the largest parts give to those that have too little."""
    for index in range(len(parts)):
        while len(parts[index]) < fewest:
            largest = max(range(len(parts)), key=lambda other: len(parts[other]))
            parts[index] = np.append(parts[index], parts[largest][-1])
            parts[largest] = parts[largest][:-1]
    return parts
