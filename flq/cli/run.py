"""`flq run`: submit a run, and follow it if asked to."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from flq.cli.federation import control, federated, find_or_start
from flq.cli.follow import interruption
from flq.cli.options import examples, kept_checkpoints, wall_time_limit_option
from flq.cli.watching import Watching, watched
from flq.errors import NodesMissing, Unreachable
from flq.local.person import person
from flq.settings import Settings
from flq.wire.control import Control
from flq.wire.runs import NodeRow, RunRow, Submission

NODE_PATIENCE = 5.0
"""How long to wait for nodes that are just coming up."""

RETRY_SECONDS = 1.0
SEED_BITS = 31


@click.command(
    "run",
    epilog=examples(
        "flq run",
        "flq run examples/digits --stream --nodes 10",
        "flq run -c 'rounds=20 lr=0.05' -c 'model=\"cnn\"'",
        "flq run --on hospital-1,site=berlin --wait --timeout 600",
        "flq run --keep-checkpoints all --wall-time-limit 3600",
    ),
)
@click.argument("app", type=click.Path(path_type=Path), default=".")
@click.option(
    "-c", "--run-config", multiple=True, metavar="'K=V ...'", help="Override the app's defaults; may be repeated."
)
@click.option(
    "--nodes", type=click.IntRange(min=1), metavar="N", help="Require N nodes online; the embedded federation grows."
)
@click.option(
    "--on", "select", multiple=True, metavar="NODE,...", help="Only these nodes: names, or labels as key=value."
)
@click.option("--name", help="A name for the run [default: a memorable one].")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of random numbers [default: drawn, and recorded].")
@click.option("--priority", type=int, default=0, show_default=True, help="Runs of higher priority go first.")
@wall_time_limit_option
@click.option(
    "--keep-checkpoints",
    type=kept_checkpoints,
    metavar="all|N",
    help="Keep the state of all rounds, or of the newest N, for flq fork [default: 3].",
)
@click.option("--keep-replies", is_flag=True, help="Keep the replies of all nodes, not only those of the last round.")
@watched
@federated
def command(*, settings: Settings, app: Path, watching: Watching, **options: Any) -> int:
    """Run an app on a federation, and print the run's name.

    APP is the project's folder, by default this one, or a bundle's file. Returns once the run is recorded: it cannot
    be lost then. With --stream or --wait the exit code tells how it ended. Without a federation that is configured or
    up, an embedded one is started; it stays up.
    """
    submission = _submission(app, **options)
    with interruption("before the run was submitted"):
        place = find_or_start(settings, nodes=options["nodes"])
    with control(place) as door:
        with interruption("before the run was submitted"):
            _require_nodes(door, options["nodes"], submission.select)
        with interruption("while the run was submitted", hint="`flq ls` shows whether it is there"):
            row = insist(lambda: door.submit(submission))
        return watching.see_through(door, row)


def _submission(
    app: Path,
    *,
    run_config: Sequence[str],
    select: Sequence[str],
    nodes: int | None,
    name: str | None,
    seed: int | None,
    priority: int,
    wall_time_limit: float | None,
    keep_checkpoints: int | None,
    keep_replies: bool,
) -> Submission:
    from flq.apps.bundle_file import open_app
    from flq.apps.project import override_config

    project, packed = open_app(app)
    return Submission(
        app=project.name,
        config=override_config(project.config, run_config),
        bundle=packed.data,
        owner=person(),
        idempotency_key=uuid.uuid4().hex,
        seed=secrets.randbits(SEED_BITS) if seed is None else seed,
        name=name,
        select=tuple(part for given in select for part in given.split(",") if part),
        min_nodes=nodes or 0,
        priority=priority,
        wall_time_limit=wall_time_limit,
        keep_checkpoints=keep_checkpoints,
        keep_replies=keep_replies,
    )


def insist(submit: Callable[[], RunRow]) -> RunRow:
    """Submit, again if the connection is lost: the same key cannot make two runs."""
    try:
        return submit()
    except Unreachable:
        time.sleep(RETRY_SECONDS)
        return submit()


def _require_nodes(door: Control, wanted: int | None, select: Sequence[str]) -> None:
    """Wait for `wanted` nodes of those selected for a moment. Raises `NodesMissing` if fewer come."""
    if wanted is None:
        return
    give_up = time.monotonic() + NODE_PATIENCE
    while (online := sum(node.online for node in door.nodes() if _is_selected(node, select))) < wanted:
        if time.monotonic() > give_up:
            those = f" of --on {','.join(select)}" if select else ""
            raise NodesMissing(
                f"{wanted} nodes are required, {online}{those} are online",
                hint="flq nodes lists them; host more: flq supernode --name NAME --nodes N",
            )
        door.wait(0.1)
        time.sleep(0.02)


def _is_selected(node: NodeRow, select: Sequence[str]) -> bool:
    labels = {f"{key}={value}" for key, value in node.labels.items()}
    return not select or node.name in select or not labels.isdisjoint(select)
