"""`flq status`: the federation's processes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import click

from flq.cli.federation import Place, control, federated, find
from flq.cli.options import examples, json_option
from flq.cli.output import Failure, ago, note, print_failure, print_json, print_table
from flq.errors import DiskFull, FlqError
from flq.settings import Settings

if TYPE_CHECKING:
    from flq.local.federation import FederationStatus
    from flq.wire.control import Control


@dataclass(frozen=True, slots=True)
class Process:
    """A process of the embedded federation."""

    name: str
    pid: int | None
    state: str
    restarts: int
    since: datetime
    log: str


@dataclass(frozen=True, slots=True)
class Picture:
    """All that is said of the embedded federation; addresses are not, since a DSN may hold a password."""

    state: str
    pid: int | None
    nodes: int
    processes: tuple[Process, ...]
    error: str | None
    hint: str | None


@click.command(
    "status",
    epilog=examples("flq status", "flq status --json | jq -r '.data.state'"),
)
@json_option
@federated
def command(*, settings: Settings, as_json: bool) -> int:
    """Show whether the federation is up, and its processes.

    Exits with 1 if the embedded federation is not up, one of its processes fails or its disk is full, or if a SuperExec
    takes no jobs from the broker; with 5 if a federation with a DSN cannot be reached.
    """
    if settings.dsn is not None:
        return _status_elsewhere(settings, settings.dsn, as_json=as_json)
    from flq.local import federation

    found = picture(federation.status(settings.home))
    failure = _failure(found, settings)
    if as_json:
        print_json(found, failure)
        return int(failure is not None)
    print_picture(found)
    if failure is not None:
        print_failure(failure, as_json=False)
    return int(failure is not None)


def picture(found: FederationStatus) -> Picture:
    """What is shown of a status."""
    processes = tuple(
        Process(process.name, process.pid, process.state, process.restarts, process.since, str(process.log))
        for process in found.processes
    )
    return Picture(found.state, found.pid, found.nodes, processes, found.error, found.hint)


def print_picture(found: Picture) -> None:
    """Print a status for people."""
    if not found.processes:
        return
    note(f"{found.state}, {found.nodes} nodes, supervisor {found.pid}")
    rows = [
        (process.name, process.state, process.pid, process.restarts, ago(process.since), process.log)
        for process in found.processes
    ]
    print_table(("PROCESS", "STATE", "PID", "RESTARTS", "SINCE", "LOG"), rows)


def _failure(found: Picture, settings: Settings) -> Failure | None:
    from flq.local import room

    if found.state in {"down", "failed"}:
        message = found.error or f"there is no federation below {settings.home}"
        return Failure(f"federation_{found.state}", message, found.hint or "start it: flq up")
    shortage = room.shortage(settings.home)
    if shortage is not None:
        return Failure(DiskFull.code, shortage)
    failed = [process for process in found.processes if process.state == "failed"]
    if failed:
        names = ", ".join(process.name for process in failed)
        return Failure("process_failed", f"failed: {names}", f"its log: {failed[0].log}")
    return _deafness_here(settings) if found.state == "up" else None


def _deafness_here(settings: Settings) -> Failure | None:
    try:
        with control(find(settings)) as door:
            return _deafness(door)
    except FlqError as exc:
        note(f"whether its SuperExec takes jobs is not known: {exc}")
        return None


def _deafness(door: Control) -> Failure | None:
    """What is wrong if SuperExecs live that take no jobs."""
    deaf = [f"on {found.host}, pid {found.pid}" for found in door.superexecs() if found.consuming is False]
    if not deaf:
        return None
    message = f"a SuperExec takes no jobs from the broker: {'; '.join(deaf)}"
    return Failure("superexec_deaf", message, "it connects anew by itself, and ends if that does not help; see its log")


def _status_elsewhere(settings: Settings, dsn: str, *, as_json: bool) -> int:
    with control(Place(dsn, settings.broker)) as door:
        nodes, failure = door.nodes(), _deafness(door)
    online = sum(node.online for node in nodes)
    if as_json:
        found = {"state": "reachable", "federation": settings.federation, "nodes": len(nodes), "online": online}
        print_json(found, failure)
        return int(failure is not None)
    click.echo(f"{settings.federation}: reachable, {online} of {len(nodes)} nodes online")
    if failure is not None:
        print_failure(failure, as_json=False)
    return int(failure is not None)
