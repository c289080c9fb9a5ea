"""`flq logs`: what a run and its nodes have printed."""

from __future__ import annotations

import click

from flq.cli.federation import control, federated, find
from flq.cli.follow import follow, interruption
from flq.cli.options import examples, json_option, run_argument
from flq.cli.output import print_json
from flq.cli.views import JsonView, LogView
from flq.settings import Settings
from flq.wire.control import Control
from flq.wire.runs import FeedCursor, LogLine


@click.command(
    "logs",
    epilog=examples("flq logs brave-otter", "flq logs -f brave-otter", "flq logs brave-otter --source serverapp"),
)
@run_argument
@click.option("-f", "--follow", "following", is_flag=True, help="Go on until the run is finished.")
@click.option("--source", multiple=True, metavar="NAME", help="Only serverapp, superexec or a node; may be repeated.")
@click.option("--timeout", type=click.FloatRange(min=0), metavar="S", help="With -f: give up after S seconds, exit 3.")
@json_option
@federated
def command(
    *, settings: Settings, run: str, following: bool, source: tuple[str, ...], timeout: float | None, as_json: bool
) -> None:
    """Print a run's log.

    That is the output of its ServerApp, of its nodes and of SuperExec, in the order of time. The ServerApp's lines
    stand as they are, the others after their source's name.
    """
    with control(find(settings)) as door:
        if not following:
            lines = [line for line in everything(door, run) if _wanted(line, source)]
            if as_json:
                print_json(lines)
            else:
                LogView(source).lines(lines)
            return
        view = JsonView(source) if as_json else LogView(source)
        name = door.run(run).name
        with interruption(f"while {name} was followed", hint=f"it is not stopped by that: flq stop {name}"):
            row = follow(door, name, view, timeout=timeout, rounds=False)
        view.end(row)


def everything(door: Control, run: str) -> list[LogLine]:
    """All lines of a run so far."""
    lines: list[LogLine] = []
    cursor = FeedCursor()
    while (page := door.logs(run, cursor)).lines:
        lines += page.lines
        cursor = page.cursor
    return sorted(lines, key=lambda line: (line.at, line.line_id))


def _wanted(line: LogLine, source: tuple[str, ...]) -> bool:
    return not source or line.source in source
