"""What is said of a run, its rounds, its nodes and its history: plain rows that cross process borders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from flq.wire.ids import NodeId, ObjectHash, RunId
from flq.wire.status import AttemptStatus, Outcome, ProcessKind, RunStatus

ConfigValue = bool | int | float | str
"""A value of a run's or a node's configuration: flat, dotted keys, TOML scalars."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A run to be: what `flq run` hands to Control.

    `idempotency_key` makes a repeated submission return the run that exists. `select` holds node names or
    labels (`name` or `key=value`); empty means every node. Times are in seconds. Of its checkpoints the newest
    `keep_checkpoints` keep their state, 0 being all and None three; with `keep_replies` so do all replies.
    """

    app: str
    bundle: bytes = field(repr=False)
    config: Mapping[str, ConfigValue]
    owner: str
    idempotency_key: str
    seed: int
    name: str | None = None
    select: tuple[str, ...] = ()
    min_nodes: int = 0
    priority: int = 0
    weight: float = 1.0
    wall_time_limit: float | None = None
    keep_replies: bool = False
    keep_checkpoints: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Derivation:
    """A run to be that takes app, seed and settings from another one: what `flq fork` and `flq rerun` hand to Control.

    With `from_round` it goes on behind that round of the other one, else it begins from scratch. `config` None is that
    of the other one. `idempotency_key` makes a repeated call return the run that exists.
    """

    owner: str
    idempotency_key: str
    from_round: int | None = None
    config: Mapping[str, ConfigValue] | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What a ServerApp or a ClientApp needs to know of its run."""

    run_id: RunId
    name: str
    app: str
    bundle: ObjectHash
    config: Mapping[str, ConfigValue]
    seed: int
    status: RunStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """One row of `flq.runs`. `wall_time_limit` and `active_time`, what was used of it, are in seconds."""

    run_id: RunId
    name: str
    app: str
    owner: str
    status: RunStatus
    outcome: Outcome | None
    reason: str | None
    attempt: int
    rounds_planned: int | None
    rounds_done: int
    tasks_open: int
    results_ok: int
    results_error: int
    stop_requested: bool
    config: Mapping[str, ConfigValue]
    select: tuple[str, ...]
    bundle: ObjectHash
    created_at: datetime
    started_at: datetime | None
    running_at: datetime | None
    finished_at: datetime | None
    forked_from: str | None = None
    forked_from_round: int | None = None
    rerun_of: str | None = None
    wall_time_limit: float | None = None
    active_time: float = 0.0


@dataclass(frozen=True, slots=True)
class Cause:
    """Something that keeps a run from going on. `cause` is a word for programs, `reason` a sentence for people."""

    cause: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRow:
    """One row of `flq.attempts`."""

    attempt: int
    status: AttemptStatus
    host: str | None
    pid: int | None
    job_id: str | None
    exit_code: int | None
    error: str | None
    published_at: datetime
    claimed_at: datetime | None
    ended_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRow:
    """One row of `flq.rounds`: `nodes` were asked, `done` of their tasks have ended."""

    round: int
    status: str
    nodes: int
    tasks: int
    done: int
    errors: int
    duration: timedelta | None
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """One row of a run's append-only history."""

    at: datetime
    event: str
    actor: str
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactRow:
    """A file that a run stored. `size` is in bytes."""

    name: str
    hash: ObjectHash
    size: int
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRow:
    """One row of `flq.nodes`."""

    node_id: NodeId
    name: str
    online: bool
    config: Mapping[str, ConfigValue]
    labels: Mapping[str, str]
    epoch: int
    host: str | None
    pid: int | None
    version: str | None
    tasks_open: int
    tasks_leased: int
    last_seen_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SuperExecRow:
    """One row of `flq.superexecs`. Whether it takes jobs from the broker (`consuming`) is known while it is online."""

    process_id: str
    host: str
    pid: int
    version: str
    online: bool
    consuming: bool | None
    slots: int
    slots_taken: int
    consumed_at: datetime | None
    jobs_missed: int
    consumer_restarts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """A process instance that introduces itself. `process_id` is a fresh uuid4 in hex."""

    process_id: str
    kind: ProcessKind
    host: str
    pid: int
    version: str
    slots: int


@dataclass(frozen=True, slots=True)
class FeedCursor:
    """How far a reader of an append-only feed has come.

    The next read asks for rows written by transactions from `xmin` on, which no former read can have missed, and
    drops those in `seen`, pairs of transaction and id: no gap behind a late commit, no row twice.
    """

    xmin: int = 0
    seen: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """A line of output. `source` is `serverapp`, `superexec` or a node's name; `level` a logging level's name."""

    at: datetime
    source: str
    level: str
    text: str
    line_id: int = 0


@dataclass(frozen=True, slots=True)
class LogPage:
    """Lines in the order of their time, and where to go on."""

    lines: tuple[LogLine, ...]
    cursor: FeedCursor


@dataclass(frozen=True, slots=True)
class Table:
    """The answer to a query: column names and rows of plain values."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The hint that Celery carries to a SuperExec: Postgres knows the rest."""

    run_id: RunId
    name: str
    attempt: int
    job_id: str
