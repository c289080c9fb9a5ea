"""The benchmark `queue`: how worker processes take orders, and what is made of what they say."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.failure import BenchmarkError
from benchmarks.harness import OURS
from benchmarks.queues import benchmark as queue
from benchmarks.queues.crew import Crew
from benchmarks.queues.orders import Work

WORKER = """
import os
from benchmarks.queues.orders import serve

def fail(): raise ValueError("no such queue")
def speak(): print("noise"); os.write(1, b"more noise"); return "answer"
serve({"double": lambda number: 2 * number, "pid": os.getpid, "speak": speak, "fail": fail})
"""


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    program = tmp_path / "worker.py"
    program.write_text(WORKER)
    root = Path(queue.__file__).parents[2]
    with Crew([sys.executable, str(program)], {"PYTHONPATH": str(root)}, size=3, logs=tmp_path) as found:
        yield found


def test_each_worker_is_a_process_that_answers_its_own_order(crew: Crew):
    assert len(set(crew.each("pid"))) == 3
    assert crew.all("double", [{"number": 1}, {"number": 2}, {"number": 3}]) == [2, 4, 6]
    assert crew.first("double", number=21) == 42


def test_what_a_library_prints_is_no_answer(crew: Crew):
    assert crew.each("speak") == ["answer"] * 3


def test_a_worker_that_fails_says_why(crew: Crew):
    with pytest.raises(BenchmarkError, match="no such queue"):
        crew.first("fail")
    with pytest.raises(BenchmarkError, match="no such queue"):
        crew.first("pid")


def test_work_lasts_from_the_first_statement_to_the_last_answer():
    work = Work()
    assert work.told() == {"tasks": 0, "began": None, "ended": None}
    work.begin()
    began = work.began
    work.did(3)
    work.begin()
    work.did(4)
    assert (work.tasks, work.began) == (7, began)
    assert work.began is not None
    assert work.ended is not None
    assert work.began <= work.ended


def test_the_rate_is_of_all_processes_together():
    works: list[dict[str, Any]] = [
        {"tasks": 30, "began": 10.0, "ended": 12.0},
        {"tasks": 70, "began": 11.0, "ended": 15.0},
        {"tasks": 0, "began": None, "ended": None},
    ]
    assert queue.rate(works, 100) == 20.0


def test_tasks_that_were_not_done_give_no_figure():
    with pytest.raises(BenchmarkError, match="99 of 100"):
        queue.rate([{"tasks": 99, "began": 1.0, "ended": 2.0}], 100)


def test_every_goal_is_one_of_a_cell_with_the_peer_it_compares_with():
    made = queue.benchmark(quick=False, peers=True)
    cells = {cell.name: cell for cell in made.cells}
    assert len(cells) == len(made.cells)
    keys = {metric.key for metric in made.metrics}
    for goal in made.goals:
        assert goal.metric in keys
        sides = set(cells[goal.cell].sides)
        assert OURS in sides
        assert len(sides) == (1 if goal.ratio is None else 2)


def test_without_peers_flq_is_measured_alone():
    made = queue.benchmark(quick=True, peers=False)
    assert all(set(cell.sides) == {OURS} for cell in made.cells)
