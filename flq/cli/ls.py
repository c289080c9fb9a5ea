"""`flq ls`: the runs."""

from __future__ import annotations

import click

from flq.cli.federation import control, federated, find
from flq.cli.options import examples, json_option
from flq.cli.output import ago, print_json, print_table
from flq.settings import Settings
from flq.wire.runs import RunRow
from flq.wire.status import RunStatus


@click.command(
    "ls",
    epilog=examples("flq ls", "flq ls --active", "flq ls --json | jq -r '.data[].name'"),
)
@click.option("-n", "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many.")
@click.option("-a", "--active", is_flag=True, help="Only runs that are not finished.")
@json_option
@federated
def command(*, settings: Settings, limit: int, active: bool, as_json: bool) -> None:
    """List the runs, newest first."""
    with control(find(settings)) as door:
        rows = door.runs(limit=limit)
    if active:
        rows = [row for row in rows if row.status is not RunStatus.FINISHED]
    if as_json:
        print_json(rows)
        return
    columns = ("RUN", "APP", "STATUS", "ROUNDS", "TASKS", "RESULTS", "ERRORS", "SUBMITTED")
    print_table(columns, [_line(row) for row in rows], empty="no runs yet; start one: flq run")


def state(row: RunRow) -> str:
    """A run's status in one word, the outcome if it has one."""
    if row.outcome is not None:
        return str(row.outcome)
    return "stopping" if row.stop_requested else str(row.status)


def rounds(row: RunRow) -> str:
    """How many rounds are done, of how many if that is known."""
    return f"{row.rounds_done}/{row.rounds_planned}" if row.rounds_planned else str(row.rounds_done)


def _line(row: RunRow) -> tuple[object, ...]:
    results = row.results_ok + row.results_error
    return row.name, row.app, state(row), rounds(row), row.tasks_open, results, row.results_error, ago(row.created_at)
