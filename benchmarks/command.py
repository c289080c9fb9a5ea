"""The command line: which benchmarks, how often, and where their results go."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import click
from rich.console import Console
from rich.status import Status
from rich.table import Table

from benchmarks import (
    aggregation,
    broadcast,
    claims,
    endurance,
    harness,
    idle,
    machine,
    payloads,
    report,
    rounds,
    simulation,
    workplace,
)
from benchmarks.failure import BenchmarkError
from benchmarks.figures import summarize
from benchmarks.harness import Benchmark, Sample, Watcher
from benchmarks.queues import benchmark as queue

BENCHMARKS: dict[str, Callable[..., Benchmark]] = {
    "rounds": rounds.benchmark,
    "idle": idle.benchmark,
    "endurance": endurance.benchmark,
    "claims": claims.benchmark,
    "broadcast": broadcast.benchmark,
    "payloads": payloads.benchmark,
    "queue": queue.benchmark,
    "aggregation": aggregation.benchmark,
    "simulation": simulation.benchmark,
}
REPEATS = 3
PAGE_WIDTH = 160
"""Of tables that go into a pipe or a file."""

BUSY = 0.5
"""A load of so many processes before the first measurement means that the machine has other work."""


class Progress(Watcher):
    """Shows what is being measured, and a line for each measurement."""

    def __init__(self, console: Console, benchmark: Benchmark) -> None:
        self._console = console
        self._benchmark = benchmark
        self._status = Status(benchmark.name, console=console)

    def __enter__(self) -> Self:
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def doing(self, text: str) -> None:
        """Show it; without a terminal, print it."""
        told = f"{self._benchmark.name}, {text}"
        if self._console.is_terminal:
            self._status.update(told)
        else:
            self._console.print(f"{told} ...", highlight=False)

    def took(self, sample: Sample) -> None:
        """Print the figures."""
        found = (
            f"{metric.title} {report.spoken(summarize([sample.values[metric.key]]).median, metric.unit)}"
            for metric in self._benchmark.metrics
            if metric.key in sample.values
        )
        self._console.print(f"  {sample.cell}, {sample.side}: {'; '.join(found)}", highlight=False)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, type=click.Choice(list(BENCHMARKS)), metavar="[NAMES]...")
@click.option("--quick", is_flag=True, help="Few and short measurements, into benchmarks/.work: for developing.")
@click.option("--repeats", type=click.IntRange(min=1), metavar="N", help=f"How often [default: {REPEATS}; quick: 1].")
@click.option("--no-peers", is_flag=True, help="Measure flq alone.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Where to [default: benchmarks/results].")
def command(*, names: tuple[str, ...], quick: bool, repeats: int | None, no_peers: bool, out: Path | None) -> None:
    """Measure flq, in turn with its peers if `make peers` has installed them.

    NAMES are of: rounds, idle, endurance, claims, broadcast, payloads, queue, aggregation, simulation; all by default.
    A result is a JSON file and a page for people. A full measurement into benchmarks/results also renews the tables
    in docs/benchmarks.md.
    """
    console = Console(stderr=True)
    peers = not no_peers and _peers(console)
    folder = out or (workplace.WORK / "quick" if quick else workplace.RESULTS)
    for name in names or tuple(BENCHMARKS):
        about = _about(quick=quick, repeats=repeats or (1 if quick else REPEATS), peers=peers)
        _warn_if_busy(console, about["machine"]["load"])
        found = _measure(console, BENCHMARKS[name](quick=quick, peers=peers), about)
        written = report.write(found, folder)
        _show(found, written)
    if folder.resolve() == workplace.RESULTS and not quick:
        report.publish(folder, workplace.DOCS)


def main() -> None:
    """Run the command; SIGTERM ends it like Ctrl-C, so that nothing is left running."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        command.main(standalone_mode=True)
    except BenchmarkError as exc:
        click.echo(f"error: {exc}", err=True)
        sys.exit(1)


def _measure(console: Console, benchmark: Benchmark, about: dict[str, Any]) -> report.Document:
    with Progress(console, benchmark) as progress:
        samples = harness.run(benchmark, about["repeats"], progress)
    return report.document(benchmark, samples, {**about, "finished_at": report.now()})


def _about(*, quick: bool, repeats: int, peers: bool) -> dict[str, Any]:
    return {
        "started_at": report.now(),
        "quick": quick,
        "repeats": repeats,
        **machine.commit(),
        "machine": machine.describe(),
        "versions": machine.versions(peers=peers),
    }


def _peers(console: Console) -> bool:
    if machine.peers_installed():
        return True
    console.print(
        "The peers are not installed, or not all of them: flq is measured alone. `make peers` installs them.",
        style="yellow",
        highlight=False,
    )
    return False


def _warn_if_busy(console: Console, load: float) -> None:
    if load > BUSY:
        told = f"This machine has other work (load {load}): take figures that count when it is quiet."
        console.print(told, style="yellow", highlight=False)


def _show(found: report.Document, written: list[Path]) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = PAGE_WIDTH
    shown = Table(*report.COLUMNS, title=found["title"])
    for cells in report.table(found):
        shown.add_row(*cells)
    console.print(shown)
    console.print(report.taken(found), highlight=False, soft_wrap=not console.is_terminal)
    console.print(report.bars(found), highlight=False)
    for path in written:
        console.print(f"written: {path}", highlight=False, soft_wrap=True)
