"""The benchmark `idle`: what it takes to have a federation, before anybody runs anything on it.

Only one of the two federations is up at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from benchmarks import flq_federation, flwr_federation, processes
from benchmarks.federation import Federation
from benchmarks.harness import Benchmark, Cell, Goal, Measure, Metric, Side, Values

NODES = 10
CELL = f"{NODES} nodes"
SECONDS = 60.0
QUICK_SECONDS = 20.0

METRICS = (
    Metric("cold", "cold start, until all nodes are online", "s"),
    Metric("warm", "start again", "s"),
    Metric("down", "stop", "s"),
    Metric("cpu", "CPU when idle", "CPU-s/min"),
    Metric("memory", "memory when idle", "MB"),
)
GOALS = (
    Goal(CELL, "cold", at_most=5),
    Goal(CELL, "cpu", ratio=5),
    Goal(CELL, "memory", ratio=5),
)


def benchmark(*, quick: bool, peers: bool) -> Benchmark:
    """The benchmark."""
    seconds = QUICK_SECONDS if quick else SECONDS
    sides: dict[str, Side] = {"flq": partial(_side, partial(_measure_flq, seconds))}
    if peers:
        sides["flwr"] = partial(_side, partial(_measure_flwr, seconds))
    return Benchmark(
        name="idle",
        title=f"Cold start, idle cost and memory of a federation of {NODES} nodes",
        metrics=METRICS,
        goals=GOALS,
        cells=[Cell(CELL, sides)],
        settings={
            "watched_seconds": seconds,
            "flq": "flq up in an empty home; PostgreSQL and Valkey are counted; one SuperNode hosts all nodes",
            "flwr": "SuperLink and a SuperNode for each node, isolation subprocess, with their SuperExecs",
        },
    )


@contextmanager
def _side(measure: Measure) -> Iterator[Measure]:
    yield measure


def _measure_flq(seconds: float) -> Values:
    with flq_federation.federation() as federation:
        cold = federation.up(NODES)
        idle = _idle(federation, seconds)
        down = federation.down()
        warm = federation.up(NODES)
    return {"cold": [cold], "warm": [warm], "down": [down], **idle}


def _measure_flwr(seconds: float) -> Values:
    with flwr_federation.federation() as federation:
        return {"cold": [federation.up(NODES)], **_idle(federation, seconds)}


def _idle(federation: Federation, seconds: float) -> Values:
    roots = federation.roots()
    processes.until_quiet(roots, "the federation")
    rate = processes.cpu_rate(roots, seconds)
    family = processes.family(roots)
    return {  # how many processes were counted is no metric, but stands in the samples
        "cpu": [rate * 60],
        "memory": [processes.pss_megabytes(family)],
        "processes": [len(family)],
    }
