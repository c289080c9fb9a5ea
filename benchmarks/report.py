"""What stays of a benchmark: a JSON file with everything, and a page for people that is made of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.failure import BenchmarkError
from benchmarks.harness import OURS, Benchmark, Goal, Row, Sample, reached, rows

SCHEMA_VERSION = 1
BAR = 40
COLUMNS = ("setting", "measured", "flq", "peer", "times better", "each pair", "goal")
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
NO_FIGURES = "No figures have been taken yet: `make bench` takes them."

Document = dict[str, Any]


def document(benchmark: Benchmark, samples: Sequence[Sample], about: Mapping[str, Any]) -> Document:
    """All that is known after a benchmark; `about` is what it was taken on."""
    return {
        "schema_version": SCHEMA_VERSION,
        "benchmark": benchmark.name,
        "title": benchmark.title,
        **about,
        "warmups": benchmark.warmups,
        "settings": dict(benchmark.settings),
        "rows": [_row(row) for row in rows(benchmark, samples)],
        "samples": [dataclasses.asdict(sample) for sample in samples],
    }


def write(found: Document, folder: Path) -> list[Path]:
    """Write the JSON file and the page; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    as_json, as_page = folder / f"{found['benchmark']}.json", folder / f"{found['benchmark']}.md"
    as_json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    as_page.write_text(page(found), encoding="utf-8")
    return [as_json, as_page]


def publish(results: Path, docs: Path) -> None:
    """Put the tables of all results into the docs, between the two marks."""
    text = docs.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BenchmarkError(f"{docs} has no marks {BEGIN} and {END}")
    docs.write_text(f"{before}{BEGIN}\n\n{published(results)}\n{END}{after}", encoding="utf-8")


def published(results: Path) -> str:
    """What the docs say of the results."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    return "\n".join(_section(each, "###") for each in found) or f"{NO_FIGURES}\n"


def page(found: Document) -> str:
    """The page of one benchmark."""
    return f"{_section(found, '#')}\n```\n{bars(found)}\n```\n"


def table(found: Document) -> list[list[str]]:
    """The lines of the table, in `COLUMNS`."""
    return [
        [
            row["cell"],
            row["title"],
            _figure(row["sides"][OURS], row["unit"]) if OURS in row["sides"] else "",
            _peers(row),
            _ratio(row),
            _pairs(row),
            _goal(row),
        ]
        for row in found["rows"]
    ]


def taken(found: Document) -> str:
    """When, where and of what the figures were taken, in one line."""
    machine = found["machine"]
    sides = [name for name in found["versions"] if any(name in row["sides"] for row in found["rows"])]
    versions = " beside ".join(f"{name} {found['versions'][name][name]}" for name in sides)
    state = f"{found['commit'] or 'unknown'}{' with changes' if found['modified'] else ''}"
    repeats = f"{found['repeats']} repeat{'s' if found['repeats'] > 1 else ''}"
    return (
        f"{versions}, commit {state}, {found['started_at'][:10]}, {repeats}{_quickly(found)}; "
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']:.0f} GB, {machine['distribution']}, "
        f"Python {machine['python']}; 8 KB on disk in {machine['fsync_ms']} ms; load before {machine['load']}"
    )


def bars(found: Document) -> str:
    """A picture of the medians: what both sides have, as bars whose lengths compare."""
    pictures = (_picture(row) for row in found["rows"] if len(row["sides"]) > 1)
    return "\n\n".join(pictures) or "There is nothing to compare with: `make peers` installs the peers."


def spoken(value: float, unit: str) -> str:
    """A figure for people, in three significant digits."""
    if unit == "s" and value < 1:
        return f"{digits(value * 1000)} ms"
    if unit == "MB" and value >= 1000:
        return f"{digits(value / 1000)} GB"
    return f"{digits(value)} {unit}".rstrip()


def digits(value: float) -> str:
    """Three significant digits, never a power of ten."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.5f}".rstrip("0").rstrip(".")


def now() -> str:
    """The time, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _row(row: Row) -> Document:
    return {
        "cell": row.cell,
        **dataclasses.asdict(row.metric),
        "sides": {name: dataclasses.asdict(summary) for name, summary in row.sides.items()},
        "ratios": {name: dataclasses.asdict(ratio) for name, ratio in row.ratios.items()},
        "goal": None if row.goal is None else _limits(row.goal),
        "reached": reached(row),
    }


def _limits(goal: Goal) -> Document:
    return {"at_most": goal.at_most, "at_least": goal.at_least, "ratio": goal.ratio}


def _section(found: Document, heading: str) -> str:
    lines = [_line(COLUMNS), _line(["---"] * len(COLUMNS)), *(_line(cells) for cells in table(found))]
    settings = (f"- {name}: {_setting(value)}" for name, value in found["settings"].items())
    return "\n".join([f"{heading} {found['title']}", "", taken(found) + ".", "", *lines, "", *settings, ""])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _setting(value: Any) -> str:
    return ", ".join(f"{name} {item}" for name, item in value.items()) if isinstance(value, dict) else str(value)


def _quickly(found: Document) -> str:
    return ", --quick: for developing only" if found["quick"] else ""


def _figure(summary: Document, unit: str) -> str:
    low, high = (spoken(summary[end], unit) for end in ("low", "high"))
    middle = spoken(summary["median"], unit)
    return middle if low == high else f"{middle} ({_span(low, high)})"


def _peers(row: Document) -> str:
    peers = ((name, summary) for name, summary in row["sides"].items() if name != OURS)
    return ", ".join(f"{name} {_figure(summary, row['unit'])}" for name, summary in peers)


def _ratio(row: Document) -> str:
    return ", ".join(f"{digits(ratio['of_medians'])}x" for ratio in row["ratios"].values())


def _pairs(row: Document) -> str:
    return ", ".join(_span(f"{digits(ratio['low'])}x", f"{digits(ratio['high'])}x") for ratio in row["ratios"].values())


def _span(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def _goal(row: Document) -> str:
    goal = row["goal"]
    if goal is None:
        return ""
    limits = [(word, goal.get(key)) for key, word in (("at_most", "at most"), ("at_least", "at least"))]
    parts = [f"{word} {spoken(limit, row['unit'])}" for word, limit in limits if limit is not None]
    parts += [] if goal["ratio"] is None else [f"at least {digits(goal['ratio'])}x"]
    told = {True: "reached", False: "NOT reached", None: "not measured"}[row["reached"]]
    return f"{' and '.join(parts)}: {told}"


def _picture(row: Document) -> str:
    longest = max(summary["median"] for summary in row["sides"].values()) or 1.0
    width = max(map(len, row["sides"]))
    lines = [f"{row['title']}, {row['cell']}"]
    for name, summary in row["sides"].items():
        length = round(summary["median"] / longest * BAR * 8)
        bar = "█" * (length // 8) + " ▏▎▍▌▋▊▉"[length % 8].strip()
        lines.append(f"  {name:<{width}} {bar or '▏':<{BAR}} {spoken(summary['median'], row['unit'])}")
    return "\n".join(lines)
