"""`flq nodes`: the SuperNodes' nodes."""

from __future__ import annotations

import click

from flq.cli.federation import control, federated, find
from flq.cli.options import examples, json_option
from flq.cli.output import ago, print_json, print_table
from flq.settings import Settings
from flq.wire.runs import NodeRow


@click.command(
    "nodes",
    epilog=examples("flq nodes", "flq nodes --online --json"),
)
@click.option("--online", is_flag=True, help="Only nodes that are online.")
@json_option
@federated
def command(*, settings: Settings, online: bool, as_json: bool) -> None:
    """List the nodes of the federation."""
    with control(find(settings)) as door:
        rows = [row for row in door.nodes() if row.online or not online]
    if as_json:
        print_json(rows)
        return
    columns = ("NODE", "ID", "ONLINE", "TASKS", "LEASED", "HOST", "PID", "SEEN", "LABELS", "CONFIG")
    print_table(columns, [_line(row) for row in rows], empty="no node has connected yet; host some: flq supernode")


def _line(row: NodeRow) -> tuple[object, ...]:
    seen = "now" if row.online else ago(row.last_seen_at)
    tasks = row.tasks_open, row.tasks_leased
    return row.name, row.node_id, row.online, *tasks, row.host, row.pid, seen, row.labels, row.config
