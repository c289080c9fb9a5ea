"""`flq fork`: a new run that goes on behind a round of another one."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import click

from flq.cli.federation import control, federated, find
from flq.cli.options import examples, run_argument
from flq.cli.run import insist
from flq.cli.watching import Watching, watched
from flq.local.person import person
from flq.settings import Settings
from flq.wire.runs import Derivation


@click.command(
    "fork",
    epilog=examples(
        "flq fork brave-otter --from-round 5",
        "flq fork brave-otter --from-round 5 -c 'lr=0.01' --name lower-rate --stream",
        "flq fork brave-otter --from-round 10 -c 'num-rounds=20'",
    ),
)
@run_argument
@click.option(
    "--from-round", type=click.IntRange(min=0), required=True, metavar="N", help="The committed round to go on behind."
)
@click.option(
    "-c", "--run-config", multiple=True, metavar="'K=V ...'", help="Override the run's configuration; may be repeated."
)
@click.option("--name", help="A name for the new run [default: a memorable one].")
@watched
@federated
def command(
    *,
    settings: Settings,
    run: str,
    from_round: int,
    run_config: Sequence[str],
    name: str | None,
    watching: Watching,
) -> int:
    """Start a new run behind a round of another one, and print its name.

    It has the app, the seed, the settings and, unless they are overridden, the configuration of RUN, and begins with
    the model of round N. RUN stays as it is, and may be at work. Which rounds can be forked from is a matter of
    `flq run --keep-checkpoints`; by default they are the last three.
    """
    from flq.apps.runconfig import override_config

    with control(find(settings)) as door:
        config = override_config(door.run(run).config, run_config)
        derivation = Derivation(
            owner=person(), idempotency_key=uuid.uuid4().hex, from_round=from_round, config=config, name=name
        )
        return watching.see_through(door, insist(lambda: door.derive(run, derivation)))
