"""`flq rerun`: a run again, from scratch."""

from __future__ import annotations

import uuid

import click

from flq.cli.federation import control, federated, find
from flq.cli.options import examples, run_argument
from flq.cli.run import insist
from flq.cli.watching import Watching, watched
from flq.local.person import person
from flq.settings import Settings
from flq.wire.runs import Derivation


@click.command("rerun", epilog=examples("flq rerun brave-otter", "flq rerun brave-otter --name once-more --wait"))
@run_argument
@click.option("--name", help="A name for the new run [default: a memorable one].")
@watched
@federated
def command(*, settings: Settings, run: str, name: str | None, watching: Watching) -> int:
    """Run a run again from scratch, with its app, configuration and seed, and print the new run's name.

    RUN may have ended in any way, or be at work. A deterministic app makes the same model again.
    """
    derivation = Derivation(owner=person(), idempotency_key=uuid.uuid4().hex, name=name)
    with control(find(settings)) as door:
        return watching.see_through(door, insist(lambda: door.derive(run, derivation)))
