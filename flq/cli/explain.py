"""`flq explain`: why a run does not go on."""

from __future__ import annotations

from dataclasses import dataclass

import click

from flq.cli.federation import control, federated, find
from flq.cli.ls import state
from flq.cli.options import examples, json_option, run_argument
from flq.cli.output import print_json
from flq.settings import Settings
from flq.wire.runs import Cause, RunRow

HINTS = {
    "stop": "flq show {run} lists the nodes whose ClientApps have ended; what does not end in time is killed",
    "no_superexec": "start one: flq superexec; `flq status` shows that of the embedded federation",
    "no_superlink": "start one: flq superlink; `flq status` shows that of the embedded federation",
    "back_off": "flq show {run} has the whole error, flq logs {run} what was printed",
    "slots": "it starts when one of them ends; another SuperExec, or flq superexec --slots N, makes room",
    "broker": "the job is published as soon as the broker takes it",
    "job": "is the SuperExec connected to the same broker as the SuperLink? its log says so",
    "quota": "it goes on when open tasks have ended; the limit is max_open_tasks of the run, or of the federation",
    "offline": "they go on when their SuperNodes are back: flq nodes",
    "queued": "more slots: flq supernode --slots N",
    "no_node": "host some: flq supernode --name NAME --nodes N; `flq nodes` lists those that are known",
    "few_nodes": "host more: flq supernode --name NAME --nodes N; `flq nodes` lists those that are known",
}
"""The way out, by cause, where there is one."""


@dataclass(frozen=True, slots=True)
class Told:
    """A cause, with the way out."""

    cause: str
    reason: str
    hint: str | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where a run stands, and what keeps it from going on."""

    run: str
    status: str
    reason: str | None
    causes: list[Told]


@click.command("explain", epilog=examples("flq explain brave-otter", "flq explain brave-otter --json"))
@run_argument
@json_option
@federated
def command(*, settings: Settings, run: str, as_json: bool) -> None:
    """Say why a run does not go on at this moment, and what would help.

    What weighs most comes first. Of a run that is finished it says how it ended.
    """
    with control(find(settings)) as door:
        row = door.run(run)
        found = explanation(row, door.waiting(run))
    if as_json:
        print_json(found)
    else:
        _print(found)


def explanation(row: RunRow, causes: list[Cause]) -> Explanation:
    """What is said of a run."""
    told = [_told(row.name, cause) for cause in causes]
    return Explanation(row.name, state(row), row.reason, told)


def _told(run: str, found: Cause) -> Told:
    hint = HINTS.get(found.cause)
    return Told(found.cause, found.reason, hint and hint.format(run=run))


def _print(found: Explanation) -> None:
    why = f": {found.reason}" if found.reason else ""
    click.echo(f"{found.run} is {found.status}{why}")
    for told in found.causes:
        click.echo(f"- {told.reason}")
        if told.hint:
            click.echo(f"  {told.hint}")
