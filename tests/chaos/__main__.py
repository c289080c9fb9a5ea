"""`python -m tests.chaos`: kill everything, again and again, and see that every run ends as an undisturbed one does."""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import report, workplace
from tests.chaos import results
from tests.chaos.campaign import Campaign, Deck
from tests.chaos.faults import Fault, faults
from tests.chaos.scenario import LOOPS, Report

RUNS, KILLS = 40, 200


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--runs", type=click.IntRange(min=1), default=RUNS, show_default=True, help="At least so many runs.")
@click.option("--kills", type=click.IntRange(min=0), default=KILLS, show_default=True, help="At least so many kills.")
@click.option("--seed", type=int, help="Of the order and the moments of the faults [default: another one each time].")
@click.option("--only", multiple=True, metavar="TEXT", help="Only faults, or points, whose name contains this.")
@click.option("--loop", "loops", multiple=True, type=click.Choice(LOOPS), help="Only runs that are led like this.")
@click.option("--federations", type=click.IntRange(min=1), default=2, show_default=True, help="So many side by side.")
@click.option("--list", "listed", is_flag=True, help="List the faults, and do nothing.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the report goes [default: benchmarks/results if it is of all faults and of as many runs and kills as"
    " above, else benchmarks/.work/chaos].",
)
def main(
    *,
    runs: int,
    kills: int,
    seed: int | None,
    only: tuple[str, ...],
    loops: tuple[str, ...],
    federations: int,
    listed: bool,
    out: Path | None,
) -> None:
    """Kill, freeze and starve the processes of federations while runs go on, and compare what the runs end with.

    Exits with 1 if anything does not hold. A tmpfs stands for a disk that fills up, which takes root.
    """
    own_disk = os.geteuid() == 0
    chosen = [fault for fault in faults(own_disk=own_disk) if not only or any(text in fault.name for text in only)]
    if listed or not chosen:
        click.echo("\n".join(fault.name for fault in chosen) or "no fault has such a name")
        sys.exit(not chosen)
    seed = random.randrange(1 << 30) if seed is None else seed  # noqa: S311 - of a test
    about = results.about()
    campaign = _campaign(runs, kills, chosen, random.Random(seed), loops or LOOPS, own_disk=own_disk)  # noqa: S311
    with _Shown(campaign, seed):
        campaign.carry_out(federations=federations, rng=random.Random(seed + 1))  # noqa: S311
    settings = {"seed": seed, "federations": federations, "only": ", ".join(only) or "all faults"}
    found = results.document(campaign.reports, about, settings)
    whole = not only and not loops and runs >= RUNS and kills >= KILLS
    folder = out or (workplace.RESULTS if whole else workplace.WORK / "chaos")
    for path in results.write(found, folder):
        click.echo(f"written: {path}")
    if folder.resolve() == workplace.RESULTS:
        report.publish(folder, workplace.DOCS)
    counted = found["settings"]
    click.echo(", ".join(f"{counted[name]} {name}" for name in ("runs", "kills", results.BROKEN)))
    sys.exit(bool(counted[results.BROKEN]))


def _campaign(
    runs: int, kills: int, chosen: list[Fault], rng: random.Random, loops: tuple[str, ...], *, own_disk: bool
) -> Campaign:
    possible = any(fault.way in {"kill", "fail-point"} for fault in chosen)
    return Campaign(runs, kills if possible else 0, Deck(chosen, rng), loops, own_disk=own_disk)


class _Shown:
    """Shows how far a campaign is, and what does not hold, as soon as that is known."""

    def __init__(self, campaign: Campaign, seed: int) -> None:
        self._console = Console(stderr=True)
        self._campaign = campaign
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=self._console)
        self._runs = self._progress.add_task("runs", total=campaign.runs)
        self._kills = self._progress.add_task("kills", total=campaign.kills)
        self._console.print(f"seed {seed}", highlight=False)
        campaign.told = self._told

    def __enter__(self) -> None:
        self._progress.start()

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _told(self, report: Report) -> None:
        self._progress.update(self._runs, advance=1)
        self._progress.update(self._kills, advance=report.kills)
        struck = ", ".join(
            f"{occurrence.fault} {'' if occurrence.seconds is None else f'{occurrence.seconds:.1f} s'}".rstrip()
            for occurrence in report.occurrences
        )
        self._console.print(f"{report.loop}, {report.seconds:.0f} s: {struck}", highlight=False, soft_wrap=True)
        for text in report.broken:
            self._console.print(f"  DOES NOT HOLD: {text}", style="red", highlight=False, markup=False, soft_wrap=True)


def _end(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: the federations are being stopped
    sys.exit(143)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    main()
