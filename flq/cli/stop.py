"""`flq stop`: end a run."""

from __future__ import annotations

import click

from flq.cli.federation import control, federated, find
from flq.cli.ls import state
from flq.cli.options import examples, json_option, run_argument
from flq.cli.output import note, print_json
from flq.local.person import person
from flq.settings import Settings
from flq.wire.status import RunStatus


@click.command(
    "stop",
    epilog=examples("flq stop brave-otter", 'flq stop brave-otter --reason "wrong data"'),
)
@run_argument
@click.option("--reason", help="Why, for the run's history.")
@json_option
@federated
def command(*, settings: Settings, run: str, reason: str | None, as_json: bool) -> None:
    """Stop a run: its ServerApp and its ClientApps end within seconds.

    What it has committed stays. Stopping a run that has finished changes nothing.
    """
    with control(find(settings)) as door:
        row = door.stop(run, actor=person(), reason=reason)
    if as_json:
        print_json(row)
    elif row.status is RunStatus.FINISHED:
        note(f"{row.name} is finished: {state(row)}")
    else:
        note(f"{row.name} is being stopped")
