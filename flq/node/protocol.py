"""What a SuperNode and a ClientApp worker tell each other, as frame headers."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, TypeVar

from flq.errors import WireError
from flq.wire.fleet import Reply, TaskKey
from flq.wire.ids import ObjectHash
from flq.wire.runs import ConfigValue
from flq.wire.status import ResultStatus

READY, TASK, DONE, LOG = "ready", "task", "done", "log"
"""The frames: a worker says that it is ready, is given a task, tells what it logs, and is done."""


MAX_ERROR_BYTES = 16 << 10

T = TypeVar("T", bound="Assignment | Done")


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A task for a worker; the frame's body is the message's manifest. Paths are absolute.

    `number` is the worker's own count of tasks, repeated in its answer. `objects` is the folder of the cache, which
    holds every object that the manifest names. `scratch` is where large arrays of the reply go. `state` is the
    version to start from, if there is one, and `stage` where the new one goes. `environments` is the folder of
    installed environments, None if nothing may be installed. `gpus` is what the worker sees as CUDA_VISIBLE_DEVICES,
    None if that is left alone. These two and `memory_bytes`, its limit, count when it loads its app.
    """

    number: int
    run_id: int
    seed: int
    bundle: str
    run_config: Mapping[str, ConfigValue]
    node_id: int
    node_name: str
    node_config: Mapping[str, ConfigValue]
    task_id: int
    kind: str
    group: str
    created_at: float
    deadline: float
    attempt: int
    objects: str
    scratch: str
    state: str | None
    stage: str
    environments: str | None = None
    gpus: str | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The end of a task; the frame's body is the reply's manifest.

    `objects` are the hex hashes that the manifest names, `written` those of them that lie in the scratch folder.
    `staged` says that there is a new state, `no_room` that the disk was full: the task is to be done again. Times are
    in seconds since the epoch.
    """

    number: int
    status: ResultStatus
    started_at: float
    ended_at: float
    error_code: int | None = None
    error_text: str | None = None
    objects: list[str]
    written: list[str]
    metrics: dict[str, float | list[float]]
    staged: bool = False
    no_room: bool = False


_NAMES: dict[type, tuple[str, ...]] = {kind: tuple(field.name for field in fields(kind)) for kind in (Assignment, Done)}


def to_header(op: str, content: Assignment | Done) -> dict[str, Any]:
    """The header of a frame."""
    return {"op": op, **{name: getattr(content, name) for name in _NAMES[type(content)]}}


def to_assignment(header: Mapping[str, Any]) -> Assignment:
    """Read an assignment. Raises `WireError`."""
    return _read(Assignment, header)


def to_done(header: Mapping[str, Any]) -> Done:
    """Read what a worker says of the end of a task. Raises `WireError` unless all of it is as it should be."""
    done = _read(Done, header)
    try:
        checked = Done(
            number=int(done.number),
            status=ResultStatus(done.status),
            started_at=float(done.started_at),
            ended_at=float(done.ended_at),
            error_code=None if done.error_code is None else int(done.error_code),
            error_text=None if done.error_text is None else str(done.error_text),
            objects=[_hash(text) for text in done.objects],
            written=[_hash(text) for text in done.written],
            metrics={str(name): _number(value) for name, value in done.metrics.items()},
            staged=bool(done.staged),
            no_room=bool(done.no_room),
        )
    except (TypeError, ValueError, AttributeError) as exc:
        raise WireError(f"a worker's answer is malformed: {exc}") from exc
    if checked.status not in {ResultStatus.OK, ResultStatus.ERROR}:
        raise WireError(f"a worker cannot end a task as {checked.status}")
    return checked


def to_reply(key: TaskKey, done: Done, manifest: bytes) -> Reply:
    """The reply to the task of `key`, of what its worker says."""
    return Reply(
        key=key,
        status=done.status,
        manifest=manifest,
        objects=frozenset(ObjectHash(bytes.fromhex(text)) for text in done.objects),
        metrics=done.metrics,
        error_code=done.error_code,
        error_text=None if done.error_text is None else capped(done.error_text),
        started_at=datetime.fromtimestamp(done.started_at, UTC),
        ended_at=datetime.fromtimestamp(done.ended_at, UTC),
        state=done.staged,
    )


def lacks_room(exc: BaseException) -> bool:
    """Whether an error says that a disk, or a quota on it, is full."""
    return isinstance(exc, OSError) and exc.errno in {errno.ENOSPC, errno.EDQUOT}


def _read(kind: type[T], header: Mapping[str, Any]) -> T:
    try:
        return kind(**{name: header[name] for name in _NAMES[kind] if name in header})
    except TypeError as exc:
        raise WireError(f"a frame lacks fields: {exc}") from exc


def _hash(text: str) -> str:
    if len(bytes.fromhex(text)) != 32:  # noqa: PLR2004 - a sha256
        raise ValueError(f"{text!r} is no hash")
    return text.lower()


def _number(value: Any) -> float | list[float]:
    if isinstance(value, list):
        return [float(item) if not isinstance(item, int) else item for item in value]
    return value if isinstance(value, int) else float(value)


def capped(text: str, limit: int = MAX_ERROR_BYTES) -> str:
    """`text` of at most `limit` bytes: its beginning and, as a traceback ends with the cause, more of its end."""
    data = text.encode("utf-8", "replace").replace(b"\0", b"?")
    if len(data) > limit:
        mark = b"\n... (cut) ...\n"
        head = limit // 4
        data = data[:head] + mark + data[len(data) - (limit - head - len(mark)) :]
    return data.decode("utf-8", "ignore")
