"""What the benchmarks of claims and broadcasts make of what they have measured."""

from __future__ import annotations

import os

import pytest

from benchmarks import broadcast, claims, payloads
from benchmarks.failure import BenchmarkError
from benchmarks.harness import Benchmark, Sample, Values, reached, rows
from tests.waiting import eventually

ROW = (broadcast.NODES, True, 0.09, 0.05, 0.02, 0.01)


class Turns:
    """A queue that writes down when it was its turn."""

    def __init__(self, name: str, seconds: float, turns: list[str]) -> None:
        self._name = name
        self._seconds = seconds
        self._turns = turns

    def block(self) -> list[float]:
        self._turns.append(self._name)
        return [self._seconds, self._seconds, self._seconds * 10]


def goals(benchmark: Benchmark, values: Values) -> dict[str, bool | None]:
    (cell,) = benchmark.cells
    found = rows(benchmark, [Sample(cell.name, "flq", 1, 0.0, values)])
    return {row.metric.key: reached(row) for row in found if row.goal is not None}


def test_the_three_databases_take_turns_in_an_order_that_turns_round():
    turns: list[str] = []
    queues = {name: Turns(name, 0.001, turns) for name in (claims.FRESH, claims.HISTORY, claims.CHURNED)}
    found = claims.measure(queues)  # type: ignore[arg-type]  # a queue is what has blocks
    there = [claims.FRESH, claims.HISTORY, claims.CHURNED]
    assert turns == [*reversed(there), *there] * (claims.BLOCKS // 2)
    assert [len(found[name]) for name in there] == [claims.BLOCKS * 3] * 3


def test_medians_are_compared_with_the_fresh_database():
    took = {claims.FRESH: [1.0] * 99 + [9.0], claims.HISTORY: [1.2] * 100, claims.CHURNED: [1.5] * 100}
    values = {**took, **claims.compared(took)}
    assert values["history_ratio"] == [1.2]
    assert values["churned_ratio"] == [1.5]
    assert values["fresh_slow"] == [9.0]
    assert goals(claims.benchmark(quick=False, peers=False), values) == {"history_ratio": True, "churned_ratio": False}


def test_a_run_s_first_pushes_are_not_counted():
    late = (broadcast.NODES, True, 5.0, 4.0, 3.0, 2.0)
    values = broadcast.claims([late, late, ROW, ROW], pushes=4)
    assert values == {"last": (0.09, 0.09), "middle": (0.05, 0.05), "first": (0.02, 0.02), "push": (0.01, 0.01)}
    assert goals(broadcast.benchmark(quick=False, peers=False), values) == {"last": True}


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([ROW] * 3, id="a push is missing"),
        pytest.param([*[ROW] * 3, (broadcast.NODES - 1, *ROW[1:])], id="a node is missing"),
        pytest.param([*[ROW] * 3, (broadcast.NODES, False, *ROW[2:])], id="a task was claimed twice"),
    ],
)
def test_pushes_that_did_not_reach_every_node_at_once_are_no_measurement(rows):
    with pytest.raises(BenchmarkError, match="not 4 pushes to 1000 nodes"):
        broadcast.claims(rows, pushes=4)


def test_every_goal_is_of_a_cell_and_a_metric_that_are_measured():
    for made in (claims.benchmark, broadcast.benchmark, payloads.benchmark):
        found = made(quick=False, peers=True)
        cells, metrics = {cell.name for cell in found.cells}, {metric.key for metric in found.metrics}
        assert {goal.cell for goal in found.goals} <= cells
        assert {goal.metric for goal in found.goals} <= metrics


def test_the_most_memory_that_a_process_has_had_is_told():
    held = bytearray(8 << 20)
    pid = os.getpid()
    with payloads.Peaks({pid: payloads.private(pid) - len(held)}) as peaks:
        eventually(lambda: peaks.megabytes[0] >= 8, what="a look at the memory")
