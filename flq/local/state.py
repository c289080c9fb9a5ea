"""What the supervisor says of itself: a lock that tells whether it lives, and a file that tells the rest.

The file outlives a supervisor that is killed. It is therefore believed only while the lock is held, and only
if it was written by the lock's holder; the exception is `remains`, with which the next supervisor finds
processes of a killed one.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from flq.errors import LocalError

ProcessState = Literal["starting", "running", "restarting", "failed", "stopped"]
FederationState = Literal["down", "starting", "up", "failed", "stopping"]

_LOCK_PATIENCE = 0.3


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the embedded Postgres and Valkey are: a libpq conninfo, and a URL as Celery takes it."""

    dsn: str
    broker: str


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """One process of the embedded federation, as its supervisor sees it."""

    name: str
    pid: int | None
    state: ProcessState
    restarts: int
    since: datetime
    log: Path


@dataclass(frozen=True, slots=True)
class Remain:
    """A process that lives on for a while if its supervisor is killed; `birth` tells it from a later one of its pid."""

    name: str
    pid: int
    birth: str
    signal: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The content of the state file."""

    pid: int
    state: FederationState
    nodes: int
    addresses: Addresses | None
    processes: tuple[ProcessStatus, ...] = ()
    remains: tuple[Remain, ...] = ()
    error: str | None = None
    hint: str | None = None


def write(path: Path, snapshot: Snapshot) -> None:
    """Replace the state file in one step. It is for its owner only."""
    text = json.dumps(asdict(snapshot), default=_plain)
    draft = path.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    draft.replace(path)


def read(path: Path) -> Snapshot | None:
    """The state file's content, or None if there is none that can be read."""
    try:
        return _snapshot(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def acquire(lock: Path) -> int | None:
    """Take the lock and write this process's pid into it; None if another process holds it.

    The lock is held until the returned descriptor is closed, at the latest when the process ends, however it
    ends. Whoever looks whether it is held holds it for an instant, hence the short patience.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    give_up = time.monotonic() + _LOCK_PATIENCE
    while not _flock(descriptor, fcntl.LOCK_EX):
        if time.monotonic() > give_up:
            os.close(descriptor)
            return None
        time.sleep(0.01)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def holder(lock: Path) -> int | None:
    """The pid of the process that holds the lock, 0 if it has not written it yet; None if nobody does.

    Raises `LocalError` if the lock is another user's.
    """
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as exc:
        raise LocalError(f"{lock} belongs to another user", hint="set FLQ_HOME to a folder of your own") from exc
    try:
        if _flock(descriptor, fcntl.LOCK_SH):
            return None
        return int(os.pread(descriptor, 20, 0) or b"0")
    finally:
        os.close(descriptor)


def still_there(lock: Path, descriptor: int) -> bool:
    """Whether the lock that `descriptor` holds is the one that others see: not if its folder was removed."""
    try:
        return os.path.samestat(lock.stat(), os.fstat(descriptor))
    except OSError:
        return False


def _flock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _snapshot(found: dict[str, Any]) -> Snapshot:
    addresses = found["addresses"]
    return Snapshot(
        **{
            **found,
            "addresses": Addresses(**addresses) if addresses else None,
            "processes": tuple(_process(process) for process in found["processes"]),
            "remains": tuple(Remain(**remain) for remain in found["remains"]),
        }
    )


def _process(found: dict[str, Any]) -> ProcessStatus:
    return ProcessStatus(
        **{**found, "since": datetime.fromisoformat(found["since"]), "log": Path(found["log"])},
    )
