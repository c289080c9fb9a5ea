"""`flq up`: start the embedded federation."""

from __future__ import annotations

import click

from flq.cli.federation import federated
from flq.cli.options import examples, json_option
from flq.cli.output import note, print_json
from flq.cli.status import picture, print_picture
from flq.errors import UsageError
from flq.settings import Settings


@click.command(
    "up",
    epilog=examples("flq up", "flq up --nodes 10"),
)
@click.option("--nodes", type=click.IntRange(min=1), metavar="N", help="How many nodes it hosts [default: 2].")
@click.option("--install-deps", is_flag=True, help="Install what apps depend on, below the home folder.")
@json_option
@federated
def command(*, settings: Settings, nodes: int | None, install_deps: bool, as_json: bool) -> None:
    """Start a federation on this machine.

    It consists of PostgreSQL, Valkey, a SuperLink, a SuperExec and a SuperNode that hosts N nodes. It stays up
    until `flq down`. One that is up already is grown if N is larger, and else an error: nothing is started twice.
    """
    require_embedded(settings, "started")
    from flq.local import federation

    up = federation.status(settings.home)
    if nodes is not None and up.addresses is not None and up.nodes < nodes and not install_deps:
        note(f"growing from {up.nodes} to {nodes} nodes")
        federation.grow(settings.home, nodes=nodes)
    else:
        wanted = nodes or federation.DEFAULT_NODES
        federation.up(settings.home, nodes=wanted, install_deps=install_deps, progress=note)
    found = picture(federation.status(settings.home))
    if as_json:
        print_json(found)
    else:
        print_picture(found)


def require_embedded(settings: Settings, what: str) -> None:
    """Raise `UsageError` if the settings name a federation that is not ours to start and stop."""
    if not settings.embedded:
        raise UsageError(
            f"federation {settings.federation!r} is not {what} by flq: it has a DSN of its own",
            hint="--federation embedded names the one on this machine",
        )
