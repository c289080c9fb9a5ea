"""`flq run`: submit a run, and follow it if asked to."""

from __future__ import annotations

import secrets
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flq.cli.federation import control, federated, find_or_start
from flq.cli.follow import follow, interruption, wait
from flq.cli.options import examples, json_option
from flq.cli.output import Failure, note, print_json
from flq.cli.person import person
from flq.cli.views import JsonView, StreamView, ended, failure_of
from flq.errors import Interrupted, NodesMissing, Unreachable
from flq.settings import Settings
from flq.wire.control import Control
from flq.wire.runs import NodeRow, RunRow, Submission
from flq.wire.status import Outcome

if TYPE_CHECKING:
    from flq.cli.live import LiveView

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
    ),
)
@click.argument("app", type=click.Path(path_type=Path), default=".")
@click.option(
    "-c", "--run-config", multiple=True, metavar="'K=V ...'", help="Override the app's defaults; may be repeated."
)
@click.option("--stream", is_flag=True, help="Show progress and output until the run is finished.")
@click.option("--wait", "waiting", is_flag=True, help="Wait until the run is finished, in silence.")
@click.option(
    "--nodes", type=click.IntRange(min=1), metavar="N", help="Require N nodes online; the embedded federation grows."
)
@click.option(
    "--on", "select", multiple=True, metavar="NODE,...", help="Only these nodes: names, or labels as key=value."
)
@click.option("--name", help="A name for the run [default: a memorable one].")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of random numbers [default: drawn, and recorded].")
@click.option("--priority", type=int, default=0, show_default=True, help="Runs of higher priority go first.")
@click.option(
    "--time-limit", type=click.FloatRange(min=0, min_open=True), metavar="S", help="Fail the run after S seconds."
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    metavar="S",
    help="Stop waiting after S seconds, exit 3; the run goes on.",
)
@json_option
@federated
def command(*, settings: Settings, app: Path, stream: bool, waiting: bool, as_json: bool, **options: Any) -> int:
    """Run an app on a federation, and print the run's name.

    APP is the project's folder, by default this one, or a bundle's file. Returns once the run is recorded: it cannot
    be lost then. With --stream or --wait the exit code tells how it ended. Without a federation that is configured or
    up, an embedded one is started; it stays up.
    """
    _check(stream=stream, waiting=waiting, timeout=options["timeout"])
    submission = _submission(app, **options)
    with interruption("before the run was submitted"):
        place = find_or_start(settings, nodes=options["nodes"])
    with control(place) as door:
        with interruption("before the run was submitted"):
            _require_nodes(door, options["nodes"], submission.select)
        with interruption("while the run was submitted", hint="`flq ls` shows whether it is there"):
            row = _submit(door, submission)
        try:
            return _see_through(door, row, stream=stream, waiting=waiting, timeout=options["timeout"], as_json=as_json)
        except KeyboardInterrupt:
            return _interrupted(row, as_json=as_json)


def _check(*, stream: bool, waiting: bool, timeout: float | None) -> None:
    if stream and waiting:
        raise click.UsageError("--stream and --wait exclude each other")
    if timeout is not None and not (stream or waiting):
        raise click.UsageError("--timeout goes with --stream or --wait; to limit the run itself: --time-limit")


def _submission(
    app: Path,
    *,
    run_config: Sequence[str],
    select: Sequence[str],
    nodes: int | None,
    name: str | None,
    seed: int | None,
    priority: int,
    time_limit: float | None,
    timeout: float | None,  # noqa: ARG001 - it is ours, not the run's
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
        wall_time_limit=time_limit,
    )


def _submit(door: Control, submission: Submission) -> RunRow:
    """Submit, again if the connection is lost: the same key cannot make two runs."""
    try:
        return door.submit(submission)
    except Unreachable:
        time.sleep(RETRY_SECONDS)
        return door.submit(submission)


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


def _see_through(
    door: Control, row: RunRow, *, stream: bool, waiting: bool, timeout: float | None, as_json: bool
) -> int:
    if stream:
        with _view(as_json=as_json) as view:
            _announce(row, as_json=as_json, to_stderr=True)
            row = follow(door, row.name, view, timeout=timeout)
            view.end(row)
        _point_on(row, as_json=as_json)
    elif waiting:
        _announce(row, as_json=as_json, to_stderr=False)
        row = wait(door, row.name, timeout=timeout)
        if as_json:
            print_json(row, failure_of(row))
        else:
            note(ended(row))
        _point_on(row, as_json=as_json)
    else:
        if as_json:
            print_json(row)
            return 0
        _announce(row, as_json=as_json, to_stderr=False)
        note(f"follow it: flq logs -f {row.name}")
        return 0
    return 0 if row.outcome is Outcome.COMPLETED else 1


def _point_on(row: RunRow, *, as_json: bool) -> None:
    """Say where a run that did not complete is told of in full."""
    if row.outcome is not Outcome.COMPLETED and not as_json:
        note(f"flq show {row.name} tells more, flq logs {row.name} what was printed")


def _announce(row: RunRow, *, as_json: bool, to_stderr: bool) -> None:
    if not as_json:
        click.echo(row.name, err=to_stderr)


def _view(*, as_json: bool) -> AbstractContextManager[JsonView | StreamView | LiveView]:
    if as_json:
        return nullcontext(JsonView())
    if not sys.stdout.isatty():
        return nullcontext(StreamView())
    from flq.cli.live import LiveView

    return LiveView()


def _interrupted(row: RunRow, *, as_json: bool) -> int:
    told = f"{row.name} goes on"
    hint = f"watch it: flq logs -f {row.name}; stop it: flq stop {row.name}"
    if as_json:
        print_json(row, Failure(Interrupted.code, told, hint))
    else:
        note(f"\n{told}. {hint[0].upper()}{hint[1:]}")
    return Interrupted.exit_code
