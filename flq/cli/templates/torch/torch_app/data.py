"""The data. Replace this file by your own: on a real node it reads what lies there, and nobody else ever sees it.

Here it is made up: three arms of a spiral, which the model has to tell apart. Every partition sees another stretch of
them best, so that no node alone sees the whole picture.
"""

from __future__ import annotations

import math

import torch
from torch.utils.data import TensorDataset

CLASSES = 3
FEATURES = 2


def partition(partition_id: int, num_partitions: int, *, seed: int, examples: int = 600) -> TensorDataset:
    """The examples of one node. The same numbers give the same examples, so that a run can be repeated."""
    generator = torch.Generator().manual_seed(seed + 1 + partition_id)
    everywhere = torch.rand(examples, generator=generator)
    mine = (partition_id + torch.rand(examples, generator=generator)) / num_partitions
    where = torch.where(torch.rand(examples, generator=generator) < 0.3, everywhere, mine)
    return _spiral(where, generator)


def held_out(*, seed: int, examples: int = 1500) -> TensorDataset:
    """Examples from everywhere that no node has: what the server measures the model on."""
    generator = torch.Generator().manual_seed(seed)
    return _spiral(torch.rand(examples, generator=generator), generator)


def _spiral(where: torch.Tensor, generator: torch.Generator) -> TensorDataset:
    """Points on the arms, from the center (0) to the end (1), with some noise on them."""
    labels = torch.randint(CLASSES, where.shape, generator=generator)
    radius = 0.2 + 1.8 * where
    angle = 2.5 * radius + 2 * math.pi * labels / CLASSES
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    return TensorDataset(points + 0.08 * torch.randn(points.shape, generator=generator), labels)
