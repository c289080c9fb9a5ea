"""Grid: the door for a ServerApp. One instance is bound to one attempt of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from flq.wire.ids import BatchId, NodeId, ObjectHash, TaskId
from flq.wire.objects import Objects
from flq.wire.runs import ConfigValue, FeedCursor, RunInfo
from flq.wire.status import ResultStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class GridNode:
    """A node that is online and that the run may use."""

    node_id: NodeId
    name: str
    config: Mapping[str, ConfigValue]
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """Messages of one type and group to a set of nodes: one batch.

    `manifests` holds one manifest for all nodes, or one per node in the order of `node_ids`. `objects` are the
    objects that they name. `sequence` counts the pushes of the run in program order, from 0. `content_hash`
    identifies what is pushed: type, group, destinations and records. `ttl` is in seconds.
    """

    sequence: int
    kind: str
    group: str
    round: int | None
    ttl: float
    node_ids: tuple[NodeId, ...]
    manifests: tuple[bytes, ...] = field(repr=False)
    objects: frozenset[ObjectHash]
    content_hash: bytes


@dataclass(frozen=True, slots=True)
class Pushed:
    """The batch and its tasks, in the order of the push's `node_ids`.

    `replayed` says that the batch existed: the same push was made by an earlier attempt.
    """

    batch_id: BatchId
    task_ids: tuple[TaskId, ...]
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class ResultKey:
    """A finished task."""

    batch_id: BatchId
    task_id: TaskId
    node_id: NodeId
    status: ResultStatus


@dataclass(frozen=True, slots=True)
class ResultPage:
    """Results that have come in since the cursor, and where to go on."""

    keys: tuple[ResultKey, ...]
    cursor: FeedCursor


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A finished task with its reply. `manifest` is empty unless the status is `ok`.

    `created_at` is the time of the reply in seconds since the epoch.
    """

    batch_id: BatchId
    task_id: TaskId
    node_id: NodeId
    status: ResultStatus
    error_code: int | None
    error_text: str | None
    manifest: bytes = field(repr=False)
    created_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A committed round: what a later attempt starts from.

    `state` is the manifest of a RecordDict with the model and the strategy's state, `objects` what it names.
    `metrics` are the round's, by name. `next_sequence` is the sequence of the first push after the commit.
    """

    round: int
    state: bytes = field(repr=False)
    objects: frozenset[ObjectHash]
    metrics: Mapping[str, float]
    next_sequence: int


class Grid(Objects, Protocol):
    """What a ServerApp does with its federation.

    Every write MUST be refused with `AttemptFenced` once another attempt has taken the run over or the run has
    ended, and MUST then change nothing.
    """

    def run(self) -> RunInfo:
        """The run that this attempt executes."""

    def nodes(self) -> list[GridNode]:
        """The nodes that are online and that the run may use, by id."""

    def push(self, push: Push) -> Pushed:
        """Create the tasks of a batch, all or none.

        A push with the sequence and content of one that exists MUST return that one. Raises `ObjectsMissing`
        if the manifests name objects that are not stored, `NodeUnknown` if a destination does not exist.
        """

    def arrived(self, batches: Sequence[BatchId], cursor: FeedCursor) -> ResultPage:
        """The keys of the results of `batches` that have come in since `cursor`; each exactly once."""

    def results(self, keys: Sequence[ResultKey]) -> list[Result]:
        """The results of `keys`, in their order."""

    def wait(self, seconds: float) -> None:
        """Return when a result may have come in, or after `seconds`.

        A result that is stored after the last call of `arrived` MUST end the next wait.
        """

    def cancel(self, batches: Sequence[BatchId]) -> int:
        """End the open tasks of `batches` as cancelled; returns how many."""

    def plan_rounds(self, rounds: int) -> None:
        """Say how many rounds the run will have, for people who watch."""

    def commit_round(self, checkpoint: Checkpoint) -> None:
        """Record a finished round. Exactly one commit of a round counts. Raises `ObjectsMissing`."""

    def last_checkpoint(self) -> Checkpoint | None:
        """The newest committed round of the run, or None."""

    def record_metrics(self, round: int, metrics: Mapping[str, float], node_id: NodeId | None = None) -> None:  # noqa: A002
        """Record named numbers of a round (0 is the evaluation before the first one); the newest value counts."""

    def put_artifact(self, name: str, object_hash: ObjectHash) -> None:
        """Make a stored object the run's artifact `name`, replacing an earlier one. Raises `ObjectsMissing`."""

    def close(self) -> None:
        """Give back what the door holds."""
