"""The arithmetic of the benchmarks, the order of their measurements, and what is written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks import figures, harness, report, workplace
from benchmarks.failure import BenchmarkError
from benchmarks.federation import Outcome, read_report
from benchmarks.harness import Benchmark, Cell, Goal, Measure, Metric, Watcher

ABOUT: dict[str, Any] = {
    "started_at": "2026-01-01T00:00:00+00:00",
    "finished_at": "2026-01-01T00:01:00+00:00",
    "quick": False,
    "repeats": 3,
    "commit": "abc",
    "modified": True,
    "machine": {
        "cpu": "Fast", "cores": 2, "memory_gb": 24.0, "kernel": "Linux", "distribution": "Debian", "python": "3.11",
        "fsync_ms": 0.5, "load": 0.1,
    },
    "versions": {"flq": {"flq": "0.1"}, "flwr": {"flwr": "1.41.0"}},
}  # fmt: skip


def test_a_summary_takes_the_median_of_each_repeat_and_of_those():
    found = figures.summarize([[1.0, 9.0, 2.0], [4.0], [3.0, 5.0]])
    assert found.figures == (2.0, 4.0, 4.0)
    assert (found.median, found.low, found.high) == (4.0, 2.0, 4.0)


def test_a_ratio_says_how_many_times_better_flq_is():
    ours, peers = figures.summarize([[1.0], [2.0], [4.0]]), figures.summarize([[10.0], [30.0], [20.0]])
    found = figures.ratio(ours, peers, better="lower")
    assert found.of_medians == 10.0
    assert found.pairs == (10.0, 15.0, 5.0)
    assert (found.low, found.high) == (5.0, 15.0)
    assert figures.ratio(ours, peers, better="higher").of_medians == 0.1
    with pytest.raises(ValueError, match="shorter"):
        figures.ratio(ours, figures.summarize([[1.0]]), better="lower")


class Stage:
    """Sides that write down what is done with them."""

    def __init__(self, figures: Mapping[str, list[float]]) -> None:
        self.acts: list[str] = []
        self._figures = {name: list(values) for name, values in figures.items()}

    @contextmanager
    def side(self, name: str) -> Iterator[Measure]:
        self.acts.append(f"+{name}")
        try:
            yield partial(self._measure, name)
        finally:
            self.acts.append(f"-{name}")

    def _measure(self, name: str) -> dict[str, list[float]]:
        self.acts.append(name)
        return {"took": [self._figures[name].pop(0)]}

    def benchmark(self, *sides: str, goal: Goal | None = None, warmups: int = 0) -> Benchmark:
        cell = Cell("2 nodes", {name: partial(self.side, name) for name in sides})
        return Benchmark(
            name="example",
            title="An example",
            metrics=[Metric("took", "one round", "s"), Metric("other", "never measured", "s")],
            cells=[cell],
            goals=[goal] if goal else [],
            settings={"bytes": 10, "rounds": {"flq": 50, "flwr": 3}},
            warmups=warmups,
        )


def test_sides_are_measured_in_turn_and_every_second_time_in_the_opposite_order():
    stage = Stage({"flq": [9.0, 1.0, 2.0, 3.0], "flwr": [9.0, 10.0, 20.0, 30.0]})
    samples = harness.run(stage.benchmark("flq", "flwr", warmups=1), 3, Watcher())
    warmup, first, second, third = ["flq", "flwr"], ["flq", "flwr"], ["flwr", "flq"], ["flq", "flwr"]
    assert stage.acts == ["+flq", "+flwr", *warmup, *first, *second, *third, "-flwr", "-flq"]
    assert [(sample.side, sample.repeat) for sample in samples] == [
        ("flq", 1), ("flwr", 1), ("flwr", 2), ("flq", 2), ("flq", 3), ("flwr", 3),
    ]  # fmt: skip
    (row,) = harness.rows(stage.benchmark("flq", "flwr"), samples)
    assert row.sides["flq"].figures == (1.0, 2.0, 3.0)
    assert row.ratios["flwr"].pairs == (10.0, 10.0, 10.0)


def test_sides_are_taken_down_when_a_measurement_fails():
    stage = Stage({"flq": [], "flwr": [1.0]})
    with pytest.raises(IndexError):
        harness.run(stage.benchmark("flq", "flwr"), 1, Watcher())
    assert stage.acts[-2:] == ["-flwr", "-flq"]


@pytest.mark.parametrize(
    ("goal", "sides", "expected"),
    [
        (None, ("flq", "flwr"), None),
        (Goal("2 nodes", "took", ratio=10), ("flq", "flwr"), True),
        (Goal("2 nodes", "took", ratio=10.1), ("flq", "flwr"), False),
        (Goal("2 nodes", "took", ratio=10), ("flq",), None),
        (Goal("2 nodes", "took", at_most=1), ("flq",), True),
        (Goal("2 nodes", "took", at_most=0.9), ("flq",), False),
        (Goal("2 nodes", "took", at_least=1), ("flq",), True),
        (Goal("2 nodes", "took", at_least=1.1), ("flq",), False),
        (Goal("2 nodes", "took", at_most=0.9, ratio=10), ("flq", "flwr"), False),
        (Goal("10 nodes", "took", ratio=10), ("flq", "flwr"), None),
    ],
)
def test_goals(goal: Goal | None, sides: tuple[str, ...], expected: Any):
    stage = Stage({"flq": [1.0], "flwr": [10.0]})
    benchmark = stage.benchmark(*sides, goal=goal)
    (row,) = harness.rows(benchmark, harness.run(benchmark, 1, Watcher()))
    assert harness.reached(row) is expected


def documented(folder: Path, *sides: str) -> report.Document:
    stage = Stage({"flq": [0.02, 0.03, 0.04], "flwr": [3.0, 9.0, 6.0]})
    benchmark = stage.benchmark(*sides, goal=Goal("2 nodes", "took", ratio=150))
    found = report.document(benchmark, harness.run(benchmark, 3, Watcher()), ABOUT)
    as_json, _ = report.write(found, folder)
    read: report.Document = json.loads(as_json.read_text())
    return read


def test_a_result_has_every_value_and_the_page_is_made_of_it(tmp_path: Path):
    found = documented(tmp_path, "flq", "flwr")
    assert [sample["values"]["took"] for sample in found["samples"]] == [[0.02], [3.0], [9.0], [0.03], [0.04], [6.0]]
    (line,) = report.table(found)
    assert line == [
        "2 nodes", "one round", "30 ms (20 ms to 40 ms)", "flwr 6 s (3 s to 9 s)", "200x", "150x to 300x",
        "at least 150x: reached",
    ]  # fmt: skip
    page = (tmp_path / "example.md").read_text()
    assert page == report.page(found)
    assert f"| {' | '.join(line)} |" in page
    assert "flq 0.1 beside flwr 1.41.0, commit abc with changes, 2026-01-01, 3 repeats" in page
    assert "- rounds: flq 50, flwr 3" in page


def test_bars_have_the_lengths_of_the_medians(tmp_path: Path):
    ours, peers = report.bars(documented(tmp_path, "flq", "flwr")).splitlines()[1:]
    assert peers.count("█") == report.BAR
    assert ours.split()[1] == "▎"  # a 200th of 40, in eighths


def test_flq_alone_is_a_result_too(tmp_path: Path):
    found = documented(tmp_path, "flq")
    (line,) = report.table(found)
    assert line[3:] == ["", "", "", "at least 150x: not measured"]
    assert "make peers" in report.page(found)


def test_results_are_published_between_the_marks(tmp_path: Path):
    docs = tmp_path / "docs.md"
    docs.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.publish(tmp_path / "results", docs)
    assert report.NO_FIGURES in docs.read_text()
    documented(tmp_path / "results", "flq", "flwr")
    report.publish(tmp_path / "results", docs)
    text = docs.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| 200x |" in text
    report.publish(tmp_path / "results", docs)
    assert docs.read_text() == text


def test_docs_without_marks_are_not_touched(tmp_path: Path):
    docs = tmp_path / "docs.md"
    docs.write_text("words")
    with pytest.raises(BenchmarkError, match="no marks"):
        report.publish(tmp_path, docs)
    assert docs.read_text() == "words"


def test_the_docs_say_what_the_results_say():
    text = workplace.DOCS.read_text(encoding="utf-8")
    assert f"{report.BEGIN}\n\n{report.published(workplace.RESULTS)}\n{report.END}" in text


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0.0291, "s", "29.1 ms"),
        (9.5, "s", "9.5 s"),
        (27.44, "s", "27.4 s"),
        (120.4, "s", "120 s"),
        (0.00001, "CPU-s/min", "0.00001 CPU-s/min"),
        (239.4, "MB", "239 MB"),
        (2800.0, "MB", "2.8 GB"),
        (12345.0, "", "12,345"),
        (0.0, "", "0"),
    ],
)
def test_figures_for_people(value: float, unit: str, expected: str):
    assert report.spoken(value, unit) == expected


def a_report(**changes: Any) -> dict[str, Any]:
    good = {
        "entered": 101.0, "starts": [102.0, 103.0, 105.0], "ended": 106.0, "train_replies": [2, 2, 2],
        "evaluate_replies": [2, 2, 2], "model_kept": True,
    }  # fmt: skip
    return {**good, **changes}


def test_a_round_lasts_until_the_next_one_starts():
    outcome = Outcome(typed=100.0, finished=107.0, report=a_report())
    assert outcome.rounds == [1.0, 2.0, 1.0]
    assert (outcome.typed_to_main, outcome.typed_to_finished) == (1.0, 7.0)


@pytest.mark.parametrize("changes", [{"train_replies": [2, 1, 2]}, {"evaluate_replies": [2, 2]}, {"model_kept": False}])
def test_a_run_that_did_not_do_the_work_gives_no_figures(tmp_path: Path, changes: dict[str, Any]):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(a_report()))
    assert read_report(path, rounds=3, nodes=2) == a_report()
    path.write_text(json.dumps(a_report(**changes)))
    with pytest.raises(BenchmarkError, match="the work was not done"):
        read_report(path, rounds=3, nodes=2)


def test_a_run_without_a_report_gives_no_figures(tmp_path: Path):
    with pytest.raises(BenchmarkError, match="without its report"):
        read_report(tmp_path / "report.json", rounds=1, nodes=2)


@pytest.mark.parametrize("module", ["client.py", "server.py"])
def test_both_frameworks_run_the_same_app(module: str):
    ours, peers = (
        [line for line in (workplace.APPS / f"{name}_rounds" / f"rounds_on_{name}" / module).read_text().splitlines()
         if line and f"from {name}" not in line]
        for name in ("flq", "flwr")
    )  # fmt: skip
    assert ours == peers
    assert len(ours) > 10
