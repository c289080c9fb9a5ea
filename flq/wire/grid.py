"""Grid: the door for a ServerApp. One instance is bound to one attempt of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
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


class StepKind(StrEnum):
    """What a ServerApp does that is numbered."""

    PUSH = "push"
    CHECKPOINT = "checkpoint"


class DeliveryKind(StrEnum):
    """What a ServerApp is given that may be different in another attempt."""

    NODES = "nodes"
    """A list of nodes."""
    PULLED = "pulled"
    """What a pull has brought: the tasks whose results were there, perhaps none."""
    RECEIVED = "received"
    """Results that were waited for, in the order of their tasks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """Something that was delivered to the app, `times` times in a row.

    `node_list` is the sha256 that a list of nodes is kept under. `task_ids` are the tasks whose results were
    delivered, in this order, `timed_out` those of them that were cancelled or that had expired.
    """

    kind: DeliveryKind
    node_list: bytes = b""
    task_ids: tuple[TaskId, ...] = ()
    timed_out: tuple[TaskId, ...] = ()
    times: int = 1


@dataclass(frozen=True, slots=True)
class Delivered:
    """What was delivered to the app between two steps, in order; `node_lists` are those that no step has had before."""

    deliveries: tuple[Delivery, ...] = ()
    node_lists: Mapping[bytes, tuple[GridNode, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """A recorded step of a run: a push or a checkpoint, with what was delivered since the step before."""

    sequence: int
    kind: StepKind
    deliveries: tuple[Delivery, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """Messages of one type and group to a set of nodes: one batch.

    `manifests` holds one manifest for all nodes, or one per node in the order of `node_ids`. `objects` are the
    objects that they name. `sequence` counts the steps of the run, its pushes and checkpoints, in program order from 0.
    `content_hash` identifies what is pushed: type, group, destinations and records. `ttl` is in seconds. `delivered`
    is what the app was given since the step before.
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
    delivered: Delivered = field(default_factory=Delivered, repr=False)


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
    `metrics` are the round's, by name. `next_sequence` is the number of the first step after the commit, which is
    itself the step before that one; `delivered` is what the app was given since the step before the commit.

    The next attempt leaves out the steps from `first_sequence` on up to `next_sequence`: what they have sent and
    received is not needed any more, save the replies to `open_batches`, which have not been handed out. If
    `first_sequence` is None it repeats all of them. `open_from` is the lowest number of a step that an earlier commit
    has left open, if any.
    """

    round: int
    state: bytes = field(repr=False)
    objects: frozenset[ObjectHash]
    metrics: Mapping[str, float]
    next_sequence: int
    first_sequence: int | None = field(default=0, compare=False)
    open_batches: frozenset[BatchId] = field(default=frozenset(), compare=False)
    open_from: int | None = field(default=None, compare=False)
    delivered: Delivered = field(default_factory=Delivered, repr=False, compare=False)


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

        A push with the sequence and content of one that exists MUST return that one. Where a step of another content or
        kind has its sequence, the run MUST go on in a branch of its own, which begins with the steps before. Raises
        `ObjectsMissing` if the manifests name objects that are not stored, `NodeUnknown` if a destination does not
        exist.
        """

    def steps(self) -> list[Step]:
        """The steps of the run's present branch that its next attempt repeats, in order, before it goes on by itself.

        Those that the newest checkpoints leave out are not among them, but the first one of these is: what was
        delivered with it may have been delivered before the app went on from the checkpoint.
        """

    def node_list(self, node_list: bytes) -> tuple[GridNode, ...]:
        """The list of nodes that was delivered as `node_list`. Raises `LinkError` if there is none."""

    def reissue(self, batch_id: BatchId, task_ids: Sequence[TaskId], ttl: float) -> int:
        """Open tasks of a batch again that were cancelled or have expired, with a fresh deadline; returns how many."""

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
