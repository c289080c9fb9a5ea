"""`flq prune`: give back what finished runs have left."""

from __future__ import annotations

import re
from contextlib import closing
from typing import TYPE_CHECKING

import click

from flq.cli.federation import federated, find
from flq.cli.options import examples, json_option
from flq.cli.output import note, print_json, print_table, size
from flq.settings import Settings

if TYPE_CHECKING:
    from flq.link.retention import Freed

_UNITS = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_AGE = re.compile(r"(\d+)([mhdw])")


def age(text: str) -> float:
    """The seconds of a time span such as 30d: minutes, hours, days or weeks."""
    found = _AGE.fullmatch(text)
    if found is None:
        raise click.BadParameter(f"{text!r} is no age: a number and m, h, d or w, such as 30d")
    return int(found[1]) * _UNITS[found[2]]


@click.command(
    "prune",
    epilog=examples(
        "flq prune --older-than 30d --dry-run",
        "flq prune --older-than 30d",
        "flq prune brave-otter --payloads",
        "flq prune brave-otter --history",
    ),
)
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--older-than", type=age, metavar="AGE", help="Runs that ended so long ago: 12h, 30d, 8w.")
@click.option("--payloads", is_flag=True, help="Only payloads: of messages, replies and checkpoints.")
@click.option("--history", is_flag=True, help="All of it: metrics, events, artifacts and the runs themselves too.")
@click.option("--dry-run", is_flag=True, help="Say what would be freed, and change nothing.")
@json_option
@federated
def command(
    *,
    settings: Settings,
    runs: tuple[str, ...],
    older_than: float | None,
    payloads: bool,
    history: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Delete payloads, results and output of finished runs, and say what was freed.

    A run's rounds, metrics, events and artifacts stay, unless --history is given. A run that was pruned cannot be
    resumed. With --older-than the output of days that have passed goes of every run.
    """
    if not runs and older_than is None:
        raise click.UsageError("name runs, or give --older-than")
    if payloads and history:
        raise click.UsageError("--payloads and --history exclude each other")
    from flq.link import retention, schema
    from flq.link.database import Database
    from flq.link.runs import resolve

    dsn = find(settings).dsn
    schema.check(dsn)
    with closing(Database(dsn, application="flq prune")) as db:
        named = tuple(dict.fromkeys(resolve(db, run) for run in runs))
        scope = retention.Scope(runs=named, age=older_than, payloads=payloads, history=history)
        freed = retention.survey(db, scope) if dry_run else retention.prune(db, scope)
    if as_json:
        print_json(freed)
        return
    _print(freed)
    note(f"{'would free' if dry_run else 'freed'} {size(freed.bytes + freed.partition_bytes)} of {freed.runs} runs")


def _print(freed: Freed) -> None:
    rows = [
        ("payloads", freed.objects, size(freed.bytes)),
        ("checkpoints", freed.checkpoints, ""),
        ("results", freed.results, ""),
        ("log lines", freed.log_lines, ""),
        ("metrics", freed.metrics, ""),
        ("events", freed.events, ""),
        ("artifacts", freed.artifacts, ""),
        ("partitions", len(freed.partitions), size(freed.partition_bytes) if freed.partitions else ""),
    ]
    print_table(("WHAT", "COUNT", "SIZE"), [row for row in rows if row[1]], empty="nothing to prune")
