"""Homes for embedded federations in tests, and what runs below them."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flq.local import federation, state
from flq.local.process import python
from tests.cluster import prepare
from tests.waiting import eventually


def stand_in(plan: str) -> tuple[str, ...]:
    """The command of a supervisor with the plan called `plan` of `local_stand_in`."""
    return python("-m", "tests.integration.local_stand_in", plan)


@contextmanager
def temporary_home(*, mode: int = 0o700, prepared: bool = False) -> Iterator[Path]:
    """A home below a folder with `mode`; nothing that runs below it survives the block.

    It is not there yet, or is `prepared` with a cluster of PostgreSQL.
    """
    outer = Path(tempfile.mkdtemp(prefix="flq-test-"))
    outer.chmod(mode)
    home = outer / "home"
    if prepared:
        prepare(home)
    try:
        yield home
    finally:
        try:
            federation.down(home)
        finally:
            for pid in processes(home):
                with suppress(ProcessLookupError):
                    kill(pid)
            eventually(lambda: not processes(home), what="the end of all processes")
            outer.chmod(0o700)
            shutil.rmtree(outer)


def processes(home: Path) -> list[int]:
    """The pids of the living processes of the federation below `home`."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal() and _is_of(entry, home)]


def _is_of(process: Path, home: Path) -> bool:
    with suppress(OSError):
        if (process / "stat").read_text().rpartition(")")[2].split()[0] in "ZX":
            return False
        arguments = (process / "cmdline").read_text().split("\0")
        if str(home) in arguments or str(home / "pg") in arguments:
            return True
        variables = (process / "environ").read_text().split("\0")
        return f"FLQ_HOME={home}" in variables or (process / "cwd").readlink().is_relative_to(home)
    return False


def pid_of(home: Path, name: str) -> int:
    """The pid of the running process called `name`; fails if it does not run."""
    found = {process.name: process for process in federation.status(home).processes}[name]
    assert found.state == "running", found
    assert found.pid is not None
    return found.pid


def kill(pid: int) -> None:
    """What the kernel does to a process when memory ends."""
    os.kill(pid, signal.SIGKILL)


def kill_supervisor(home: Path) -> None:
    """Kill the supervisor alone, and return when it is gone."""
    pid = federation.status(home).pid
    assert pid
    kill(pid)
    eventually(lambda: state.holder(home / "lock") != pid, what="the end of the supervisor")


def wait_until_restarted(home: Path, name: str, *, former: int) -> None:
    """Wait until the process called `name` runs with another pid than `former`."""

    def restarted() -> bool:
        found = {process.name: process for process in federation.status(home).processes}[name]
        return found.state == "running" and found.pid not in {None, former}

    eventually(restarted, what=f"the restart of {name}")
