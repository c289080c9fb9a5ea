"""`flq resume`: have a run that has failed or was stopped go on."""

from __future__ import annotations

import click

from flq.cli.federation import control, federated, find
from flq.cli.options import examples, run_argument, wall_time_limit_option
from flq.cli.watching import Watching, watched
from flq.local.person import person
from flq.settings import Settings


@click.command(
    "resume",
    epilog=examples("flq resume brave-otter", "flq resume brave-otter --wall-time-limit 7200 --wait"),
)
@run_argument
@wall_time_limit_option
@watched
@federated
def command(*, settings: Settings, run: str, wall_time_limit: float | None, watching: Watching) -> int:
    """Have a run that has failed or was stopped go on behind its last commit.

    It is the same run, with another attempt: what it has committed is not done again, and tasks that its end cancelled
    are sent anew. A run that has completed has nothing to go on with; `flq fork` makes a new one of it.
    """
    with control(find(settings)) as door:
        row = door.resume(run, actor=person(), wall_time_limit=wall_time_limit)
        return watching.see_through(door, row)
