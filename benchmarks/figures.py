"""The arithmetic of benchmarks: what is made of the figures that were taken."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Better = Literal["lower", "higher"]


@dataclass(frozen=True, slots=True)
class Summary:
    """One side's figures of one metric: one figure a repeat, in the order in which they were taken."""

    median: float
    low: float
    high: float
    figures: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times better flq is than a peer; below 1 it is worse.

    `of_medians` compares the medians of all repeats. `pairs` compares flq and the peer in each repeat, where they were
    measured one right after the other: its spread says how far the ratio can be trusted.
    """

    of_medians: float
    low: float
    high: float
    pairs: tuple[float, ...]


def summarize(samples: Sequence[Sequence[float]]) -> Summary:
    """Summarize a metric; `samples` has the values of each repeat, and their median is the repeat's figure."""
    figures = tuple(statistics.median(values) for values in samples)
    return Summary(statistics.median(figures), min(figures), max(figures), figures)


def ratio(ours: Summary, peers: Summary, *, better: Better) -> Ratio:
    """Compare two sides that were measured in turn. Raises `ValueError` if one has more repeats."""
    pairs = tuple(_times(our, peer, better) for our, peer in zip(ours.figures, peers.figures, strict=True))
    return Ratio(_times(ours.median, peers.median, better), min(pairs), max(pairs), pairs)


def _times(ours: float, peers: float, better: Better) -> float:
    above, below = (peers, ours) if better == "lower" else (ours, peers)
    return above / below if below else float("inf")
