"""The embedded federation, as the command line uses it: up, ensure, grow, down, status.

These functions talk to the supervisor (`flq.local.supervisor`), a process of its own that outlives them: it is
seen by its lock and its state file, stopped by SIGTERM, and asked for more nodes at its control socket.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from flq.errors import FederationRunning, LocalError, ServerFailed, UsageError
from flq.local import layout, room, state
from flq.local.layout import Layout
from flq.local.plan import SUPERNODE
from flq.local.process import python, python_environment
from flq.local.state import Addresses, FederationState, ProcessStatus, Snapshot
from flq.local.supervisor import ALREADY_RUNNING

__all__ = ["Addresses", "FederationStatus", "ProcessStatus", "addresses", "down", "ensure", "grow", "status", "up"]

Progress = Callable[[str], None]

DEFAULT_NODES = 2
SUPERVISOR = python("-m", "flq.local.supervisor")

_PAUSE = 0.03
_STOP_PATIENCE = 120.0
_REQUEST_PATIENCE = 10.0


@dataclass(frozen=True, slots=True)
class FederationStatus:
    """What is known of an embedded federation. `pid` is the supervisor's, `error` why it gave up."""

    running: bool
    pid: int | None
    nodes: int
    addresses: Addresses | None
    processes: tuple[ProcessStatus, ...]
    state: FederationState
    error: str | None
    hint: str | None = None


def _silent(_message: str) -> None:
    """Say nothing."""


def addresses(home: Path) -> Addresses | None:
    """Where the servers of the federation below `home` are, or None if it is not up."""
    return status(home).addresses


def status(home: Path) -> FederationStatus:
    """Tell the state of the federation below `home`; what a killed supervisor left written is not believed."""
    where = layout.locate(home)
    pid = state.holder(where.lock)
    written = state.read(where.state)
    if pid is None:
        if written is None or written.state != "failed":
            return _not_running("down")
        return _not_running("failed", error=written.error, hint=written.hint)
    if written is None or written.pid != pid:
        return FederationStatus(
            running=True, pid=pid or None, nodes=0, addresses=None, processes=(), state="starting", error=None
        )
    return FederationStatus(
        running=True,
        pid=pid,
        nodes=written.nodes,
        addresses=written.addresses,
        processes=written.processes,
        state=written.state,
        error=written.error,
    )


def up(
    home: Path, *, nodes: int = DEFAULT_NODES, install_deps: bool = False, progress: Progress = _silent
) -> Addresses:
    """Start the federation below `home`, hosting `nodes` nodes, and wait until it is up.

    With `install_deps` it installs what apps depend on, for as long as it is up. Raises `FederationRunning` if there
    is one or another process is just starting it, `LocalError` if the home cannot be used, and `ServerFailed` if
    something does not come up; then nothing is left running.
    """
    if nodes < 1:
        raise UsageError(f"a federation hosts at least one node, not {nodes}")
    where = layout.locate(home)
    layout.make_home(where)
    pid = state.holder(where.lock)
    if pid is not None:
        raise _running(where, pid)
    room.insist(where.home, fresh=not where.pg_data.exists())
    with _supervisor(where, nodes, *(["--install-deps"] if install_deps else [])) as process:
        return _wait_until_up(where, process, progress)


def ensure(home: Path, *, nodes: int | None = None, progress: Progress = _silent) -> tuple[Addresses, bool]:
    """Have a federation below `home` that hosts `nodes` nodes or more; whether it was started for that.

    One that is up is used, and grown if it hosts fewer; one that another process is starting is waited for.
    Raises what `up` and `grow` raise.
    """
    while True:
        found = status(home)
        if not found.running:
            with suppress(FederationRunning):  # somebody was quicker: wait for theirs
                return up(home, nodes=nodes or DEFAULT_NODES, progress=progress), True
        elif found.addresses is not None:
            if nodes is not None and found.nodes < nodes:
                progress(f"growing from {found.nodes} to {nodes} nodes")
                grow(home, nodes=nodes)
            return found.addresses, False
        time.sleep(_PAUSE)


def grow(home: Path, *, nodes: int) -> None:
    """Have the federation below `home` host at least `nodes` nodes, and wait until they are there.

    The SuperNode process is asked to end, gives its tasks back, and is started anew with more nodes.
    Raises `LocalError` if the federation is not up, `ServerFailed` if the SuperNode does not come back.
    """
    where = layout.locate(home)
    found = status(home)
    if found.addresses is None:
        raise LocalError(f"the federation below {where.home} is not up", hint="`flq up` starts it")
    if found.nodes < nodes:
        _request(where, {"nodes": nodes})
    give_up = time.monotonic() + _REQUEST_PATIENCE
    while not _hosts(found, nodes):
        if found.nodes < nodes and time.monotonic() > give_up:
            raise ServerFailed("the supervisor does not take the request", hint=f"its log is {where.supervisor_log}")
        time.sleep(_PAUSE)
        found = status(home)


def down(home: Path, *, progress: Progress = _silent) -> bool:
    """Stop the federation below `home` and wait until nothing of it is left; False if it was not up."""
    where = layout.locate(home)
    pid = state.holder(where.lock)
    if pid is None:
        return False
    told = _Teller(progress, known=state.read(where.state))
    give_up = time.monotonic() + _STOP_PATIENCE
    asked = 0
    while pid is not None and asked in {0, pid}:  # another pid is that of another federation
        if pid and not asked:  # one that has just taken the lock has not written its pid yet
            asked = pid
            _ask_to_stop(asked)
        if time.monotonic() > give_up:
            raise LocalError(f"the supervisor (pid {pid}) does not end", hint=f"its log is {where.supervisor_log}")
        time.sleep(_PAUSE)
        told.tell(state.read(where.state))
        pid = state.holder(where.lock)
    _forget(asked)
    return True


def _not_running(how: FederationState, *, error: str | None = None, hint: str | None = None) -> FederationStatus:
    return FederationStatus(
        running=False, pid=None, nodes=0, addresses=None, processes=(), state=how, error=error, hint=hint
    )


def _running(where: Layout, pid: int) -> FederationRunning:
    return FederationRunning(
        f"the federation below {where.home} is already running (supervisor pid {pid})",
        hint="`flq status` shows it, `flq down` stops it",
    )


@contextmanager
def _supervisor(where: Layout, nodes: int, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A supervisor of its own session, which goes on after the block unless the block fails."""
    process = None
    try:
        with _interrupt_afterwards():
            process = _start_supervisor(where, nodes, options)
        yield process
    except BaseException:
        if process is not None and process.poll() is None:
            process.terminate()
        raise
    finally:
        if process is not None:
            process.returncode = process.poll() or 0  # it is not ours to wait for; without this Popen complains


def _start_supervisor(where: Layout, nodes: int, options: Sequence[str]) -> subprocess.Popen[bytes]:
    layout.rotate(where.supervisor_log)
    with open(where.supervisor_log, "ab", opener=_for_owner) as log:
        return subprocess.Popen(
            [*SUPERVISOR, "--home", str(where.home), "--nodes", str(nodes), *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=python_environment({"FLQ_READY_FD": None}),
            start_new_session=True,
        )


@contextmanager
def _interrupt_afterwards() -> Iterator[None]:
    """Let Ctrl-C count at the end of the block: a process that is just being started would be lost, and live on."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Ctrl-C goes to the main thread
        return
    came: list[int] = []
    former = signal.signal(signal.SIGINT, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)
    if came:
        signal.raise_signal(signal.SIGINT)


def _for_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _wait_until_up(where: Layout, process: subprocess.Popen[bytes], progress: Progress) -> Addresses:
    told = _Teller(progress)
    while True:
        code = process.poll()
        written = state.read(where.state)
        mine = written if written and written.pid == process.pid else None
        told.tell(mine)
        if code == ALREADY_RUNNING:
            raise _running(where, state.holder(where.lock) or 0)
        if code is not None:
            raise _failure(where, mine, code)
        if mine is not None and mine.addresses is not None:
            return mine.addresses
        time.sleep(_PAUSE)


def _failure(where: Layout, written: Snapshot | None, code: int) -> LocalError:
    if written is not None and written.error is not None:
        return ServerFailed(written.error, hint=written.hint)
    if written is not None and written.state == "down":
        return LocalError("the federation was stopped while it came up")
    return ServerFailed(f"the supervisor ended with {code}", hint=f"its log is {where.supervisor_log}")


def _request(where: Layout, request: dict[str, int]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        try:
            client.sendto(json.dumps(request).encode(), str(where.control))
        except OSError as exc:
            raise LocalError(f"the supervisor cannot be asked: {exc}") from exc


def _hosts(found: FederationStatus, nodes: int) -> bool:
    """Whether the nodes are there. Raises `ServerFailed` if they will not be."""
    if found.state != "up":
        raise LocalError("the federation was stopped while it grew")
    supernode = next(process for process in found.processes if process.name == SUPERNODE)
    if supernode.state == "failed":
        raise ServerFailed(f"the SuperNode does not come up with {nodes} nodes", hint=f"its log is {supernode.log}")
    return found.nodes >= nodes and supernode.state == "running"


def _ask_to_stop(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


def _forget(pid: int) -> None:
    """Take note of the end of a supervisor that this very process had started."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


class _Teller:
    """Tells each step of a federation once."""

    def __init__(self, progress: Progress, *, known: Snapshot | None = None) -> None:
        self._progress = progress
        self._told = {process.name: process.state for process in known.processes} if known else {}

    def tell(self, written: Snapshot | None) -> None:
        for process in sorted(written.processes if written else (), key=lambda process: process.since):
            waits = process.pid is None and process.state == "starting"
            if not waits and self._told.get(process.name) != process.state:
                self._told[process.name] = process.state
                self._progress(f"{process.name}: {process.state}")
