"""`flq show`: one run from all sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby

import click

from flq.cli.federation import control, federated, find
from flq.cli.ls import rounds as rounds_of
from flq.cli.ls import state
from flq.cli.options import examples, json_option, run_argument
from flq.cli.output import cell, duration, number, print_json, print_table, size
from flq.cli.plot import sparkline
from flq.cli.views import main_metrics
from flq.settings import Settings
from flq.wire.control import Control
from flq.wire.runs import ArtifactRow, AttemptRow, EventRow, RoundRow, RunRow

PLOTTED = 4
"""So many metrics get a column and a plot; --json has all of them."""


STOPPED_ON_NODE = "stopped on node"


@dataclass(frozen=True, slots=True)
class Picture:
    """All that is said of a run."""

    run: RunRow
    waiting: str | None
    attempts: list[AttemptRow]
    rounds: list[RoundRow]
    events: list[EventRow]
    artifacts: list[ArtifactRow]


@click.command(
    "show",
    epilog=examples("flq show brave-otter", "flq show brave-otter --json | jq '.data.rounds[].metrics'"),
)
@run_argument
@json_option
@federated
def command(*, settings: Settings, run: str, as_json: bool) -> None:
    """Show a run: its state, rounds, attempts, artifacts and history."""
    with control(find(settings)) as door:
        picture = _picture(door, run)
    if as_json:
        print_json(picture)
    else:
        _print(picture)


def _picture(door: Control, run: str) -> Picture:
    row = door.run(run)
    return Picture(
        run=row,
        waiting=next((cause.reason for cause in door.waiting(run)), None),
        attempts=door.attempts(run),
        rounds=door.rounds(run),
        events=door.events(run),
        artifacts=door.artifacts(run),
    )


def _print(picture: Picture) -> None:
    for name, value in _facts(picture):
        click.echo(f"{click.style(f'{name:<11}', bold=True)} {value}")
    if picture.rounds:
        _section("rounds")
        _print_rounds(picture.rounds)
    _section("attempts")
    print_table(
        ("ATTEMPT", "STATUS", "HOST", "PID", "EXIT", "CLAIMED", "TOOK", "ERROR"),
        [_attempt_line(attempt) for attempt in picture.attempts],
        empty="none yet",
    )
    if picture.artifacts:
        _section("artifacts")
        stored = [(found.name, size(found.size), found.hash, found.created_at) for found in picture.artifacts]
        print_table(("NAME", "SIZE", "SHA256", "CREATED"), stored)
    _section("history")
    print_table(("AT", "EVENT", "ACTOR", "REASON"), _history(picture.events))
    _print_errors(picture.attempts)


def _facts(picture: Picture) -> list[tuple[str, str]]:
    run = picture.run
    tasks = f"{run.tasks_open} open, {run.results_ok} ok, {run.results_error} failed"
    facts = [
        ("run", f"{run.name} ({run.run_id})"),
        ("app", f"{run.app}, bundle {cell(run.bundle)}"),
        ("status", state(run) + (f": {run.reason}" if run.reason else "")),
        ("waiting", picture.waiting or ""),
        ("came from", _origin(run)),
        ("rounds", rounds_of(run)),
        ("tasks", tasks),
        ("owner", run.owner),
        ("nodes", ", ".join(run.select)),
        ("config", cell(run.config)),
        ("submitted", cell(run.created_at)),
        ("took", duration(run.finished_at - run.created_at) if run.finished_at else ""),
        ("worked for", _worked(run)),
    ]
    return [(name, value) for name, value in facts if value]


def _origin(run: RunRow) -> str:
    """Which run it was forked from, or repeats."""
    if run.forked_from is not None:
        return f"{run.forked_from}, behind round {run.forked_from_round}"
    return f"{run.rerun_of}, run again from scratch" if run.rerun_of is not None else ""


def _worked(run: RunRow) -> str:
    """What it has used of the time that it may work."""
    if run.wall_time_limit is None:
        return ""
    used, limit = timedelta(seconds=run.active_time), timedelta(seconds=run.wall_time_limit)
    return f"{duration(used)} of {duration(limit)}"


def _history(events: Sequence[EventRow]) -> list[tuple[object, ...]]:
    """The history as lines; a thousand nodes that confirm a stop are one of them."""
    lines: list[tuple[object, ...]] = []
    for event, group in groupby(events, key=lambda found: found.event):
        found = list(group)
        if event == STOPPED_ON_NODE and len(found) > 1:
            lines.append((found[-1].at, event, f"{len(found)} nodes", None))
        else:
            lines += [(row.at, row.event, row.actor, row.reason) for row in found]
    return lines


def _print_rounds(rounds: Sequence[RoundRow]) -> None:
    names = main_metrics({name for found in rounds for name in found.metrics})[:PLOTTED]
    columns = ("ROUND", "STATUS", "NODES", "TASKS", "ERRORS", "TOOK", *names)
    print_table(columns, [_round_line(found, names) for found in rounds])
    for name in names:
        values = [found.metrics.get(name) for found in rounds]
        known = [value for value in values if value is not None]
        if len(known) > 1:
            click.echo(f"{name:<20} {sparkline(values)}  {number(known[0])} → {number(known[-1])}")


def _round_line(found: RoundRow, names: Sequence[str]) -> tuple[object, ...]:
    tasks = f"{found.done}/{found.tasks}"
    return (
        found.round, found.status, found.nodes, tasks, found.errors, found.duration,
        *(found.metrics.get(name) for name in names),
    )  # fmt: skip


def _attempt_line(attempt: AttemptRow) -> tuple[object, ...]:
    took = attempt.ended_at - attempt.claimed_at if attempt.ended_at and attempt.claimed_at else None
    last = (attempt.error or "").strip().rpartition("\n")[2]
    return (
        attempt.attempt, attempt.status, attempt.host, attempt.pid, attempt.exit_code, attempt.claimed_at, took, last,
    )  # fmt: skip


def _print_errors(attempts: Sequence[AttemptRow]) -> None:
    for attempt in attempts:
        if attempt.error and "\n" in attempt.error.strip():
            _section(f"error of attempt {attempt.attempt}")
            click.echo(attempt.error.rstrip())


def _section(title: str) -> None:
    click.echo(f"\n{click.style(title, bold=True)}")
