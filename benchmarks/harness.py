"""One benchmark: cells, in each of which flq and its peers are measured in turn.

Machines drift: a figure that was taken ten minutes after another cannot be compared with it. Therefore each repeat
measures every side, one right after the other, and every second repeat in the opposite order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

from benchmarks.figures import Better, Ratio, Summary, ratio, summarize

OURS = "flq"
"""The side that all others are compared with."""

Values = Mapping[str, Sequence[float]]
"""What one measurement gave: the values of each metric."""

Measure = Callable[[], Values]
Side = Callable[[], AbstractContextManager[Measure]]
"""Sets a side up, hands out how to measure it, and leaves nothing behind."""


@dataclass(frozen=True, slots=True)
class Metric:
    """Something that is measured; `unit` is `s`, `MB` or a word."""

    key: str
    title: str
    unit: str
    better: Better = "lower"


@dataclass(frozen=True, slots=True)
class Goal:
    """What flq is to reach: at most or at least so much, or to be so many times better than a peer."""

    cell: str
    metric: str
    at_most: float | None = None
    at_least: float | None = None
    ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """One setting of a benchmark, and the sides that are measured in it. `OURS` is one of them."""

    name: str
    sides: Mapping[str, Side]


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """What is measured. `warmups` measurements of each side are thrown away before the first repeat.

    `around` is what all cells need: entered before the first of them, left after the last.
    """

    name: str
    title: str
    metrics: Sequence[Metric]
    cells: Sequence[Cell]
    goals: Sequence[Goal] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    warmups: int = 0
    around: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement of one side. `at` is seconds since the epoch; repeats count from 1, a warm-up is repeat 0."""

    cell: str
    side: str
    repeat: int
    at: float
    values: Values


@dataclass(frozen=True, slots=True)
class Row:
    """One metric in one cell: what all sides came to, and how flq compares with each peer."""

    cell: str
    metric: Metric
    sides: Mapping[str, Summary]
    ratios: Mapping[str, Ratio]
    goal: Goal | None


class Watcher:
    """Is told what goes on; says nothing."""

    def doing(self, text: str) -> None:
        """Something that takes a while begins."""

    def took(self, sample: Sample) -> None:
        """A measurement is done."""


def run(benchmark: Benchmark, repeats: int, watcher: Watcher) -> list[Sample]:
    """Measure all cells; returns the samples in the order in which they were taken, without warm-ups."""
    with benchmark.around():
        return [sample for cell in benchmark.cells for sample in _run_cell(benchmark, cell, repeats, watcher)]


def order(sides: Sequence[str], repeat: int) -> list[str]:
    """The order of the sides in a repeat: forward in odd repeats, backward in even ones."""
    return list(sides) if repeat % 2 else list(reversed(sides))


def rows(benchmark: Benchmark, samples: Sequence[Sample]) -> list[Row]:
    """What the samples come to. A metric that no side has measured in a cell has no row."""
    found = (_row(benchmark, cell, metric, samples) for cell in benchmark.cells for metric in benchmark.metrics)
    return [row for row in found if row is not None]


def reached(row: Row) -> bool | None:
    """Whether the row's goal is reached; None if there is none, or if there are no figures to tell."""
    goal = row.goal
    if goal is None or OURS not in row.sides or (goal.ratio is not None and not row.ratios):
        return None
    ours = row.sides[OURS].median
    fits = (goal.at_most is None or ours <= goal.at_most) and (goal.at_least is None or ours >= goal.at_least)
    return fits and (goal.ratio is None or all(found.of_medians >= goal.ratio for found in row.ratios.values()))


def _run_cell(benchmark: Benchmark, cell: Cell, repeats: int, watcher: Watcher) -> list[Sample]:
    with ExitStack() as stack:
        measures: dict[str, Measure] = {}
        for name, side in cell.sides.items():
            watcher.doing(f"{cell.name}: setting up {name}")
            measures[name] = stack.enter_context(side())
        for _ in range(benchmark.warmups):
            for name, measure in measures.items():
                watcher.doing(f"{cell.name}: warming up {name}")
                measure()
        samples = []
        for repeat in range(1, repeats + 1):
            for name in order(list(measures), repeat):
                watcher.doing(f"{cell.name}: measuring {name}, {repeat} of {repeats}")
                sample = Sample(cell.name, name, repeat, time.time(), measures[name]())
                watcher.took(sample)
                samples.append(sample)
        watcher.doing(f"{cell.name}: cleaning up")
    return samples


def _row(benchmark: Benchmark, cell: Cell, metric: Metric, samples: Sequence[Sample]) -> Row | None:
    sides = {name: found for name in cell.sides if (found := _summary(cell, name, metric, samples)) is not None}
    if not sides:
        return None
    ours = sides.get(OURS)
    ratios = {
        name: ratio(ours, peer, better=metric.better)
        for name, peer in sides.items()
        if ours is not None and name != OURS
    }
    goals = (goal for goal in benchmark.goals if (goal.cell, goal.metric) == (cell.name, metric.key))
    return Row(cell.name, metric, sides, ratios, next(goals, None))


def _summary(cell: Cell, side: str, metric: Metric, samples: Sequence[Sample]) -> Summary | None:
    mine = sorted((s for s in samples if (s.cell, s.side) == (cell.name, side)), key=lambda sample: sample.repeat)
    values = [sample.values[metric.key] for sample in mine if metric.key in sample.values]
    return summarize(values) if values else None
