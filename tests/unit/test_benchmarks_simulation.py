"""What the benchmark `simulation` makes of a run."""

from __future__ import annotations

import pytest

from benchmarks import simulation
from benchmarks.federation import Outcome
from benchmarks.harness import OURS, Sample, reached, rows


def outcome(starts: list[float], ended: float) -> Outcome:
    return Outcome(typed=100.0, finished=ended + 1.0, report={"entered": 101.0, "starts": starts, "ended": ended})


def test_the_rate_is_of_all_rounds_but_the_first():
    found = simulation.figures(outcome([102.0, 112.0, 113.0, 116.0], 120.0), nodes=1000)
    assert found == {"rate": [3 * 1000 * 2 / 8.0], "first": [12.0], "finished": [21.0]}


@pytest.mark.parametrize("length", ["quick", "full"])
def test_a_run_has_rounds_that_are_counted(length: str):
    found = simulation.benchmark(quick=length == "quick", peers=True)
    assert found.settings["rounds_of_a_run"] > simulation.SKIPPED
    assert all(set(cell.sides) == {OURS, "flwr"} for cell in found.cells)


def test_without_peers_flq_is_measured_alone():
    found = simulation.benchmark(quick=True, peers=False)
    assert all(set(cell.sides) == {OURS} for cell in found.cells)


def test_goals_are_of_the_largest_cell():
    made = simulation.benchmark(quick=False, peers=True)
    cell = max(made.cells, key=lambda cell: int(cell.name.split()[0].replace(",", "")))
    samples = [
        Sample(cell.name, OURS, 1, 0.0, {"rate": [2000.0], "cold": [59.0]}),
        Sample(cell.name, "flwr", 1, 0.0, {"rate": [200.0], "finished": [150.0]}),
    ]
    assert {row.metric.key: reached(row) for row in rows(made, samples) if row.goal} == {"rate": True, "cold": True}
