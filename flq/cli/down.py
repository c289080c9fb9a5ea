"""`flq down`: stop the embedded federation."""

from __future__ import annotations

import click

from flq.cli.federation import federated
from flq.cli.options import examples, json_option
from flq.cli.output import note, print_json
from flq.cli.up import require_embedded
from flq.settings import Settings


@click.command(
    "down",
    epilog=examples("flq down"),
)
@json_option
@federated
def command(*, settings: Settings, as_json: bool) -> None:
    """Stop the federation on this machine, and all of its processes.

    Nothing is lost: runs that are not finished go on after the next `flq up`.
    """
    require_embedded(settings, "stopped")
    from flq.local import federation

    stopped = federation.down(settings.home, progress=note)
    if as_json:
        print_json({"stopped": stopped})
    else:
        note("stopped" if stopped else f"there is no federation below {settings.home}")
