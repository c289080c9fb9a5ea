"""Processes of what is measured: which they are, what they use, and their end. Linux only: it reads /proc."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # it has no types of its own

from benchmarks.failure import BenchmarkError

PAUSE = 0.05
QUIET_CORES = 0.4
"""Below this use of CPU, in cores, a federation counts as one that has come up and waits."""

QUIET_WINDOWS = 3
END_PATIENCE = 10.0


def family(roots: Iterable[int]) -> list[psutil.Process]:
    """The living processes with these pids, and all that descend from them."""
    found: dict[int, psutil.Process] = {}
    for pid in roots:
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(pid)
            found.update({process.pid: process for process in (root, *root.children(recursive=True))})
    return list(found.values())


def marked(variable: str, value: str) -> list[psutil.Process]:
    """The processes that have this in their environment, wherever they descend from."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(variable) == value:
                found.append(process)
    return found


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """The CPU time of the processes and of those of their children that have ended.

    The difference of two such sums over a family is what the family used between them, also by processes that came
    and went meanwhile.
    """
    total = 0.0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def pss_megabytes(processes: Iterable[psutil.Process]) -> float:
    """The memory of the processes, in 10^6 bytes; a page that n of them share counts n times a n-th."""
    return sum(_pss_kib(process.pid) for process in processes) * 1024 / 1e6


def cpu_rate(roots: Sequence[int], seconds: float) -> float:
    """The CPU time that the family uses per second, watched for some seconds."""
    before, started = cpu_seconds(family(roots)), time.monotonic()
    time.sleep(seconds)  # the time is what is measured by
    return (cpu_seconds(family(roots)) - before) / (time.monotonic() - started)


def until_quiet(roots: Sequence[int], what: str, *, patience: float = 180.0) -> None:
    """Wait until the family has come up: it uses little CPU for some seconds."""
    quiet, give_up = 0, time.monotonic() + patience
    while quiet < QUIET_WINDOWS:
        quiet = quiet + 1 if cpu_rate(roots, 1.0) < QUIET_CORES else 0
        if time.monotonic() > give_up:
            raise BenchmarkError(f"{what} does not come to rest within {patience:.0f} s")


def until(condition: Callable[[], object], what: str, *, patience: float, pause: float = PAUSE) -> None:
    """Wait for a condition."""
    give_up = time.monotonic() + patience
    while not condition():
        if time.monotonic() > give_up:
            raise BenchmarkError(f"not within {patience:.0f} s: {what}")
        time.sleep(pause)


def end(processes: Iterable[psutil.Process]) -> None:
    """Ask the processes to end, and kill those that do not."""
    left = list(processes)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        _, left = psutil.wait_procs(left, timeout=END_PATIENCE)
    if left:
        raise BenchmarkError(f"these processes do not end: {', '.join(str(process.pid) for process in left)}")


def _pss_kib(pid: int) -> int:
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


def arguments(process: psutil.Process) -> list[str]:
    """The command line of a process; empty if it has ended."""
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []
