"""`flq superexec`: the SuperExec's process."""

from __future__ import annotations

import os

import click

from flq.cli.federation import federated, find
from flq.cli.options import examples
from flq.settings import Settings

LEAST_SLOTS = 4
"""ServerApps wait most of the time: even a small machine takes some."""


@click.command(
    "superexec",
    epilog=examples(
        "flq superexec --slots 8",
        'FLQ_DSN="host=db dbname=flq" FLQ_BROKER=redis://broker/0 flq superexec --name second',
    ),
)
@click.option(
    "--slots",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many ServerApps run at once [default: cores, 4 or more].",
)
@click.option("--name", default="superexec", show_default=True, help="Tells SuperExecs on one host from each other.")
@click.option("--install-deps", is_flag=True, help="Install what apps depend on, below the home folder.")
@click.option(
    "--probe-interval",
    type=click.FloatRange(min=0.1),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How often it looks whether jobs still reach it from the broker.",
)
@federated
def command(*, settings: Settings, slots: int | None, name: str, install_deps: bool, probe_interval: float) -> int:
    """Run a SuperExec, until SIGTERM: a Celery worker that launches ServerApps.

    At SIGTERM it ends its ServerApps within seconds; their runs go on with the next SuperExec. Exits with 1 if no jobs
    reach it although the broker has some, and connecting anew has not helped: have it started again then.
    """
    place = find(settings)
    broker = place.needs_broker()
    from flq.exec import superexec
    from flq.link import schema

    schema.check(place.dsn)
    many = slots or max(LEAST_SLOTS, os.cpu_count() or 1)
    return superexec.run(
        place.dsn,
        broker,
        slots=many,
        name=name,
        home=settings.home,
        install_deps=install_deps,
        probe_interval=probe_interval,
    )
