"""The faults: what is done to which process, when, and how it is seen that it is overcome."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil  # type: ignore[import-untyped]  # it has no types of its own
import redis

from flq.failpoints import POINTS
from flq.link.processes import ALIVE_SECONDS
from flq.local import valkey
from tests.chaos import observer
from tests.chaos.federation import SECOND_SUPEREXEC, SLOTS, SUPEREXEC, SUPERLINK, SUPERNODE, TWIN, Federation
from tests.chaos.observer import PATIENCE, Observer
from tests.waiting import eventually

LEASE_PASSES = 17.0
"""Longer than any lease: of a task, of an attempt, of a process."""

FULL_SECONDS = 2.0
FREEZE_SECONDS = 2.0

When = Literal["start", "middle", "end"]
Way = Literal["fail-point", "kill", "freeze", "other"]


@dataclass(slots=True)
class Scene:
    """Where a fault strikes: a run on a federation."""

    federation: Federation
    observer: Observer
    rng: random.Random


@dataclass(slots=True)
class Strike:
    """What was done: when (seconds since the epoch), and how many processes were killed."""

    at: float
    kills: int = 0
    back: Callable[[], float | None] | None = None
    """What the time to recover counts from, if not from `at`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that happens to a run. `attempts` of its ServerApp it may cost; `kind` is what the report counts by.

    `strike` does it. A fail-point's has no `strike`: its order is laid out, and the process carries it out itself.
    """

    name: str
    kind: str
    way: Way
    recovered: str
    strike: Callable[[Scene], Strike | None] | None = None
    when: When = "middle"
    attempts: int = 0
    action: str = ""
    seconds: float = 0.0
    """How long a process is frozen by a fail-point."""

    @property
    def takes_long(self) -> bool:
        """Whether much of its run may pass meanwhile."""
        return self.way in {"freeze", "other"}


KINDS = {
    "serverapp": ("ServerApp", observer.RUNNING_AGAIN),
    "superexec": ("SuperExec's pool process", observer.RUNNING_AGAIN),
    "superlink": ("SuperLink", observer.SUPERLINK_BACK),
    "supernode": ("SuperNode", observer.TASK_CLAIMED),
    "clientapp": ("ClientApp worker", observer.TASK_DONE_AGAIN),
}
STARTS = {"superexec.before-launch", "superlink.before-publish", "superlink.after-publish"}
ENDS = {"serverapp.before-report", "superexec.before-record"}


def at_fail_points() -> Iterable[Fault]:
    """A kill at each fail-point, and a freeze at some."""
    for point in POINTS:
        process = point.partition(".")[0]
        kind, recovered = KINDS[process]
        when: When = "start" if point in STARTS else "end" if point in ENDS else "middle"
        kind = "SuperExec, restarted" if point == "superexec.main" else kind
        cost = 1 if process in {"serverapp", "superexec"} else 0
        yield Fault(
            name=point, kind=kind, way="fail-point", recovered=recovered, when=when, attempts=cost, action="kill"
        )
    for point, seconds in (("supernode.before-submit", LEASE_PASSES), ("serverapp.before-commit", FREEZE_SECONDS)):
        kind, _ = KINDS[point.partition(".")[0]]
        yield Fault(
            name=f"{point}, frozen", kind=kind, way="freeze", recovered=observer.PROGRESS, action="freeze",
            seconds=seconds,
        )  # fmt: skip


def lay_out(scene: Scene, fault: Fault) -> None:
    """Lay out the order of a fail-point."""
    point = _point(fault)
    passes = scene.rng.randint(1, 2) if fault.when == "middle" else 1
    draft = scene.federation.orders / ".draft"
    draft.write_text(f"{fault.action}@{passes}")
    draft.rename(scene.federation.orders / point)


def carried_out(scene: Scene, fault: Fault) -> Strike | None:
    """What has become of the order, if a process has taken it; a frozen process is let go after its time."""
    for taken in scene.federation.orders.glob(f"{_point(fault)}.*"):
        at, pid = taken.stat().st_ctime, int(taken.suffix[1:])
        taken.unlink()
        if fault.action == "kill":
            return Strike(at, kills=1, back=_back(scene.federation, fault.kind, at))
        time.sleep(max(0.0, at + fault.seconds - time.time()))  # the time is what is tried here
        thawed = time.time()
        _signal(pid, signal.SIGCONT)
        return Strike(thawed)
    return None


def withdraw(scene: Scene, fault: Fault) -> bool:
    """Take the order back; false if a process was quicker."""
    try:
        (scene.federation.orders / _point(fault)).unlink()
    except FileNotFoundError:
        return False
    return True


def _point(fault: Fault) -> str:
    return fault.name.partition(",")[0]


def _back(federation: Federation, kind: str, at: float) -> Callable[[], float | None] | None:
    """A SuperNode's tasks count from its restart."""
    if kind != "SuperNode":
        return None
    service = federation.service(SUPERNODE)
    return lambda: next((started for started, _ in service.started if started > at), None)


def _signal(pid: int, number: signal.Signals) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


def _kill_all(pids: Iterable[int | None], *, number: signal.Signals = signal.SIGKILL) -> int:
    return sum(_signal(pid, number) for pid in pids if pid is not None)


def _tree(pid: int | None) -> list[int]:
    with suppress(psutil.NoSuchProcess):
        if pid is not None:
            root = psutil.Process(pid)
            return [root.pid, *(child.pid for child in root.children(recursive=True))]
    return []


def _parent(pid: int | None) -> int | None:
    with suppress(psutil.NoSuchProcess):
        return None if pid is None else int(psutil.Process(pid).ppid())
    return None


def _workers(scene: Scene) -> list[int]:
    """Workers that have tasks: those that wait for some are younger."""
    pid = scene.federation.service(SUPERNODE).pid
    with suppress(psutil.NoSuchProcess):
        children = [] if pid is None else psutil.Process(pid).children()
        return [child.pid for child in sorted(children, key=lambda child: child.create_time())[:SLOTS]]
    return []


def _pids(scene: Scene, target: str) -> list[int | None]:
    federation = scene.federation
    serverapp = scene.observer.serverapp()
    match target:
        case "serverapp":
            return [serverapp]
        case "pool process":
            return [_parent(serverapp)]
        case "worker":
            return [scene.rng.choice(_workers(scene) or [None])]
        case "postgres" | "valkey":
            return [federation.server(target)]
        case "superexec with all":
            return [*_tree(federation.service(SUPEREXEC).pid)]
        case _:
            return [federation.service(target).pid]


def kill(*targets: str) -> Callable[[Scene], Strike | None]:
    """Kill processes at once, after a random moment."""

    def strike(scene: Scene) -> Strike | None:
        time.sleep(scene.rng.uniform(0, 0.4))  # a random moment is what is tried here
        pids = {target: _pids(scene, target) for target in targets}
        at = time.time()
        kills = 0
        for target, found in pids.items():
            kills += _kill_all(found, number=signal.SIGQUIT if target == "postgres" else signal.SIGKILL)
        kind = "SuperNode" if targets == (SUPERNODE,) else ""
        return Strike(at, kills, _back(scene.federation, kind, at)) if kills else None

    return strike


def freeze(target: str, seconds: float) -> Callable[[Scene], Strike | None]:
    """Stop a process, and let it go on later."""

    def strike(scene: Scene) -> Strike | None:
        pids = _pids(scene, target)
        if not _kill_all(pids, number=signal.SIGSTOP):
            return None
        time.sleep(seconds)  # the time is what is tried here
        _kill_all(pids, number=signal.SIGCONT)
        return Strike(time.time())

    return strike


def taken_over(scene: Scene) -> Strike | None:
    """The machine of a SuperExec dies with all that runs on it, and does not come back until another has taken over."""
    federation = scene.federation
    _start_beside(scene, SECOND_SUPEREXEC)
    if scene.observer.state().finished:
        return None
    federation.hold(SUPEREXEC)
    at = time.time()
    kills = _kill_all(_tree(federation.service(SUPEREXEC).pid))
    eventually(
        lambda: scene.observer.state().finished or scene.observer.moment(observer.RUNNING_AGAIN, at=at),
        timeout=PATIENCE, what="a take-over",
    )  # fmt: skip
    federation.resume(SUPEREXEC)
    return Strike(at, kills)


@contextmanager
def _stopped(pid: int | None) -> Iterator[None]:
    """Freeze a process for the time of the block."""
    _kill_all([pid], number=signal.SIGSTOP)
    try:
        yield
    finally:
        _kill_all([pid], number=signal.SIGCONT)


def _start_beside(scene: Scene, name: str) -> None:
    """Start one more process while the run waits for it: its ServerApp is frozen meanwhile."""
    with _stopped(scene.observer.serverapp()):
        another = scene.federation.add(name).pid
        there = "SELECT 1 FROM flq_state.process WHERE pid = %(pid)s"
        eventually(lambda: scene.observer.rows(there, pid=another), timeout=60, what=f"{name} to be there")


def job_lost(lose: Callable[[Federation], int]) -> Callable[[Scene], Strike | None]:
    """The broker loses the job of a run's next attempt, which is published while no SuperExec listens."""

    def strike(scene: Scene) -> Strike | None:
        with _stopped(scene.federation.service(SUPEREXEC).pid):
            with _broker(scene.federation) as client:
                client.client_kill_filter(_type="normal", skipme=True)  # or it would be handed over to the frozen one
            kills = _kill_all([scene.observer.serverapp()])
            # Nothing is published any more once the SuperExec counts as dead.
            published = "SELECT 1 FROM flq_state.run_attempt WHERE run_id = %(run_id)s AND status = 'published'"
            with suppress(AssertionError):
                eventually(lambda: scene.observer.rows(published), timeout=ALIVE_SECONDS, what="the next job")
                kills += lose(scene.federation)
            at = time.time()
        return Strike(at, kills)

    return strike


def flush(federation: Federation) -> int:
    """Empty the broker."""
    with _broker(federation) as client:
        client.flushall()
    return 0


def kill_broker(federation: Federation) -> int:
    """Kill the broker, and empty the one that comes back: it might have been another machine."""
    former = federation.server("valkey")
    _kill_all([former])
    eventually(lambda: federation.server("valkey") != former, timeout=30, what="the broker to be back")
    flush(federation)
    return 1


def flushed(scene: Scene) -> Strike | None:
    """Empty the broker under way."""
    flush(scene.federation)
    return Strike(time.time())


def twin(scene: Scene) -> Strike | None:
    """Start another SuperNode with the same name and the same files; whoever is superseded ends, and comes again."""
    federation = scene.federation
    _start_beside(scene, TWIN)
    at = time.time()
    time.sleep(FREEZE_SECONDS)  # for that long both fight for the nodes
    federation.remove(TWIN)
    return Strike(at)


def full_disk(scene: Scene) -> Strike | None:
    """The disk of the SuperNode's files is full for a while."""
    filler = scene.federation.disk / "filler"
    fill(filler)
    time.sleep(FULL_SECONDS)  # the time is what is tried here
    filler.unlink()
    return Strike(time.time())


def fill(path: Path) -> None:
    """Write until there is no room."""
    for block in (4 << 20, 1 << 12, 1):
        with path.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(block))


def _broker(federation: Federation) -> Any:
    path = federation.home / "run" / "valkey.sock"
    eventually(lambda: valkey.answers(path), timeout=30, what="the broker to answer")
    return redis.Redis(unix_socket_path=str(path))


def at_random_times() -> Iterable[Fault]:
    """Kills and freezes of each process at a moment that nothing in it decides."""
    again = observer.RUNNING_AGAIN
    for kind, targets, recovered, cost in (
        ("ServerApp", ("serverapp",), again, 1),
        ("SuperExec, restarted", (SUPEREXEC,), again, 1),
        ("SuperExec, restarted", ("superexec with all",), again, 1),
        ("SuperExec's pool process", ("pool process",), again, 1),
        ("SuperLink", (SUPERLINK,), observer.SUPERLINK_BACK, 0),
        ("SuperNode", (SUPERNODE,), observer.TASK_CLAIMED, 0),
        ("ClientApp worker", ("worker",), observer.TASK_DONE_AGAIN, 0),
        ("Postgres", ("postgres",), observer.PROGRESS_ON_NEW_SERVER, 0),
        ("Valkey", ("valkey",), observer.PROGRESS, 0),
        ("several at once", ("serverapp", SUPERNODE, SUPERLINK), again, 1),
        ("several at once", ("postgres", SUPERNODE), observer.PROGRESS_ON_NEW_SERVER, 0),
        ("several at once", ("postgres", "valkey", SUPEREXEC), again, 1),
        ("several at once", ("worker", SUPERLINK, "valkey"), observer.PROGRESS, 0),
    ):
        yield Fault(
            name=f"{' + '.join(targets)} at any time", kind=kind, way="kill", recovered=recovered, attempts=cost,
            strike=kill(*targets),
        )  # fmt: skip
    for kind, target, seconds, cost in (
        ("ServerApp", "serverapp", FREEZE_SECONDS, 0),
        ("SuperExec, restarted", SUPEREXEC, LEASE_PASSES, 1),
        ("SuperExec's pool process", "pool process", LEASE_PASSES, 1),
        ("SuperLink", SUPERLINK, FREEZE_SECONDS, 0),
        ("SuperNode", SUPERNODE, LEASE_PASSES, 0),
    ):
        yield Fault(
            name=f"{target} frozen for {seconds:g} s", kind=kind, way="freeze", recovered=observer.PROGRESS,
            attempts=cost, strike=freeze(target, seconds),
        )  # fmt: skip


def others(*, own_disk: bool) -> Iterable[Fault]:
    """What is no mere kill or freeze."""
    again, progress = observer.RUNNING_AGAIN, observer.PROGRESS
    yield Fault(
        name="another SuperExec takes over", kind="SuperExec, taken over", way="kill", recovered=again, attempts=1,
        strike=taken_over,
    )  # fmt: skip
    yield Fault(
        name="job lost by FLUSHALL", kind="Valkey", way="other", recovered=again, attempts=1, strike=job_lost(flush)
    )
    yield Fault(
        name="job lost with the broker", kind="Valkey", way="kill", recovered=again, attempts=1,
        strike=job_lost(kill_broker),
    )  # fmt: skip
    yield Fault(name="FLUSHALL", kind="Valkey", way="other", recovered=progress, strike=flushed)
    yield Fault(name="two SuperNodes of one name", kind="SuperNode", way="other", recovered=progress, strike=twin)
    if own_disk:
        yield Fault(name="a full disk", kind="SuperNode", way="other", recovered=progress, strike=full_disk)


def faults(*, own_disk: bool) -> list[Fault]:
    """All of them."""
    return [*at_fail_points(), *at_random_times(), *others(own_disk=own_disk)]
