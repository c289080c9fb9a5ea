"""The report of a campaign: in the form of the benchmarks' results, with every run and what has happened to it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks import report as benchmark_report
from benchmarks.harness import OURS, Benchmark, Cell, Goal, Metric, Sample, Side
from tests.chaos.scenario import Occurrence, Report

NAME = "chaos"
BROKEN = "runs with another end than an undisturbed one"
METRICS = (
    Metric("kills", "killed", "times", "higher"),
    Metric("median", "running again, median", "s"),
    Metric("worst", "running again, worst", "s"),
)
GOALS = (
    Goal("ServerApp", "median", at_most=3),
    Goal("SuperExec, restarted", "median", at_most=5),
    Goal("SuperExec, taken over", "median", at_most=20),
    Goal("SuperNode", "median", at_most=2),
)


def about() -> dict[str, Any]:
    """What a campaign that begins now is taken on."""
    return {
        "started_at": benchmark_report.now(),
        "quick": False,
        "repeats": 1,
        **machine.commit(),
        "machine": machine.describe(),
        "versions": machine.versions(peers=False),
    }


def document(reports: Sequence[Report], taken_on: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """All that is known after a campaign."""
    by_kind: dict[str, list[Occurrence]] = defaultdict(list)
    for report in reports:
        for occurrence in report.occurrences:
            by_kind[occurrence.kind].append(occurrence)
    nothing: Mapping[str, Side] = {OURS: _not_measured}
    benchmark = Benchmark(
        name=NAME,
        title="Runs that are disturbed: what was killed, and when they were running again",
        metrics=METRICS,
        cells=[Cell(kind, nothing) for kind in sorted(by_kind)],
        goals=GOALS,
        settings={
            "runs": len(reports),
            "kills": sum(report.kills for report in reports),
            BROKEN: sum(bool(report.broken) for report in reports),
            **settings,
        },
    )
    samples = [Sample(kind, OURS, 1, 0.0, _values(found)) for kind, found in by_kind.items()]
    return {
        **benchmark_report.document(benchmark, samples, {**taken_on, "finished_at": benchmark_report.now()}),
        "faults": _faults(reports),
        "runs": [report.as_json() for report in reports],
    }


def write(found: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the JSON file and the page; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    as_json, as_page = folder / f"{NAME}.json", folder / f"{NAME}.md"
    as_json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    as_page.write_text(page(found), encoding="utf-8")
    return [as_json, as_page]


def page(found: Mapping[str, Any]) -> str:
    """The page for people."""
    first = benchmark_report.page(dict(found)).partition("\n```\n")[0]
    rows = [
        f"| {name} | {fault['times']} | {fault['kills']} | {fault['missed']} | {_spoken(fault['median'])}"
        f" | {_spoken(fault['worst'])} |"
        for name, fault in found["faults"].items()
    ]
    broken = [f"- {run['loop']}: {text}" for run in found["runs"] for text in run["broken"]]
    return "\n".join(
        [
            first.rstrip(), "", "## By fault", "",
            "`process.place` is a kill at a fail-point. *Too late* came faults whose run had finished before.", "",
            "| fault | struck | kills | too late | running again, median | worst |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows, "", "## What did not hold", "", *(broken or ["Nothing."]), "",
        ]
    )  # fmt: skip


def _values(found: Sequence[Occurrence]) -> dict[str, list[float]]:
    took = [occurrence.seconds for occurrence in found if occurrence.seconds is not None]
    kills = {"kills": [float(sum(occurrence.kills for occurrence in found))]}
    return {**kills, "median": took, "worst": [max(took)]} if took else kills


def _faults(reports: Sequence[Report]) -> dict[str, dict[str, Any]]:
    names = {occurrence.fault for report in reports for occurrence in report.occurrences}
    names |= {name for report in reports for name in report.missed}
    return {name: _fault(name, reports) for name in sorted(names)}


def _fault(name: str, reports: Sequence[Report]) -> dict[str, Any]:
    found = [occurrence for report in reports for occurrence in report.occurrences if occurrence.fault == name]
    took = sorted(occurrence.seconds for occurrence in found if occurrence.seconds is not None)
    return {
        "times": len(found),
        "kills": sum(occurrence.kills for occurrence in found),
        "missed": sum(report.missed.count(name) for report in reports),
        "recovered": len(took),
        "median": took[len(took) // 2] if took else None,
        "worst": took[-1] if took else None,
    }


def _spoken(seconds: float | None) -> str:
    return "" if seconds is None else benchmark_report.spoken(seconds, "s")


def _not_measured() -> Any:
    raise NotImplementedError("a campaign measures while it goes on")
