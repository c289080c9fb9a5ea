"""Fleet: the door for a SuperNode. One instance is bound to one process that hosts one or many nodes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Protocol

from flq.wire.ids import BatchId, NodeId, ObjectHash, RunId, TaskId
from flq.wire.objects import Objects
from flq.wire.runs import ConfigValue, LogLine, ProcessSpec, RunInfo
from flq.wire.status import ResultStatus, Verdict

LEASE_SECONDS = 15.0
"""How long a claimed task stays a process's own without a renewal. Renewed at half-life."""

HEARTBEAT_SECONDS = 1.0
"""How often a process says that it lives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    """A node that a process wants to host. The name is its identity over restarts."""

    name: str
    config: Mapping[str, ConfigValue] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostedNode:
    """A node as the SuperLink knows it. `epoch` rises when another process takes the node over."""

    node_id: NodeId
    name: str
    epoch: int


class TaskKey(NamedTuple):
    """A claimed task: who holds which one by which fence token."""

    node_id: NodeId
    run_id: RunId
    task_id: TaskId
    batch_id: BatchId
    token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StateVersion:
    """A version of a node's client state in a run: what the accepted reply of one of its tasks has left."""

    run_id: RunId
    node_id: NodeId
    task_id: TaskId


@dataclass(frozen=True, slots=True)
class StateBase:
    """The version of the client state that a task starts from; None is an empty state.

    `is_newest` says that no later task of its node and run has left a version yet: the next one starts from this, too.
    """

    version: StateVersion | None
    is_newest: bool = True


@dataclass(slots=True)
class Lease:
    """A task to do. `attempt` counts from 1; `created_at` and `deadline` are seconds since the epoch.

    `branch` is that of the task's batch: another one when a later attempt of the run has gone another way.
    """

    key: TaskKey
    attempt: int
    branch: int
    kind: str
    group: str
    created_at: float
    deadline: float
    manifest: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a claim brought, by node and task id, and the hosted nodes that another process has taken over."""

    leases: tuple[Lease, ...]
    superseded: frozenset[NodeId] = frozenset()


@dataclass(frozen=True, slots=True)
class Renewed:
    """The tasks that are no longer ours (cancelled, expired or taken over), and the nodes that are not."""

    lost: frozenset[TaskId]
    superseded: frozenset[NodeId] = frozenset()


@dataclass(slots=True, kw_only=True)
class Reply:
    """The end of a task: `ok` with a manifest, or `error` with a code and a text.

    `objects` are those that the manifest names, `payload_bytes` the size of both; `metrics` the numbers in it, by
    `record.name`, for the history. `state` says that the task has left a version of its node's client state.
    """

    key: TaskKey
    status: ResultStatus
    manifest: bytes = field(default=b"", repr=False)
    objects: frozenset[ObjectHash] = frozenset()
    payload_bytes: int = 0
    metrics: Mapping[str, float | list[float]] = field(default_factory=dict)
    error_code: int | None = None
    error_text: str | None = None
    state: bool = False
    started_at: datetime
    ended_at: datetime


@dataclass(frozen=True, slots=True)
class Wake:
    """Why a wait has ended. Both may be true after a lost connection: then look at everything."""

    tasks: bool = False
    runs: bool = False


class Fleet(Objects, Protocol):
    """What a SuperNode does with the SuperLink. Every method may be called from any thread."""

    def connect(self, process: ProcessSpec, nodes: Sequence[NodeSpec]) -> list[HostedNode]:
        """Introduce this process and take its nodes over, in the order of `nodes`.

        MUST be idempotent per process instance: a node's epoch rises only when another instance takes it over.
        From here on a push to one of the nodes MUST end a `wait`.
        """

    def heartbeat(self) -> None:
        """Say that this process lives. Never waits behind a transfer."""

    def claim(self, nodes: Collection[NodeId], *, per_node: int, total: int, token: int) -> Claimed:
        """Lease up to `per_node` open tasks for each of `nodes`, at most `total`, oldest first within a run.

        A task returned here MUST NOT be returned to anyone else until its lease ends or its node is taken over.
        A repeated call with the same token returns the same tasks, their attempt unchanged.
        """

    def renew(self, keys: Sequence[TaskKey]) -> Renewed:
        """Prolong the leases of `keys`."""

    def release(self, keys: Sequence[TaskKey]) -> None:
        """Give claimed tasks back: they can be claimed again at once. The started attempt counts."""

    def submit(self, replies: Sequence[Reply]) -> dict[TaskId, Verdict]:
        """Hand in results; each is applied at most once.

        `duplicate` says that this very result is stored already, `fenced` that the task is no longer ours, in
        which case nothing changed. Raises `ObjectsMissing` if manifests name objects that are not stored.
        """

    def state_bases(self, keys: Sequence[TaskKey]) -> dict[TaskId, StateBase]:
        """What tasks start from, for each of `keys`.

        It is the newest version that an accepted reply to an earlier task of the same node and run has left, on the way
        that the run has gone: what a branch that was given up has left does not count. A run that was forked goes on
        from what its parent's nodes had when the round was committed that it was forked from.

        The answer is the task's for good once every earlier task of its node and run has ended.
        """

    def unneeded_states(self, versions: Collection[StateVersion]) -> frozenset[StateVersion]:
        """Those of `versions`, of nodes that this process hosts, that nothing will start from any more.

        MUST NOT name what a task to come, a repetition of the steps since the newest checkpoint, a checkpoint that is
        kept or a fork of the run starts from, until a day after the run has ended.
        """

    def wait(self, seconds: float) -> Wake:
        """Return when there may be something to claim or a run may have ended, or after `seconds`.

        One thread waits at a time.
        """

    def run(self, run_id: RunId) -> RunInfo:
        """A run's bundle, config and status. Raises `RunUnknown`."""

    def bundle(self, bundle: ObjectHash) -> bytes:
        """The packed app project, hash verified. Raises `ObjectUnknown`, `ObjectCorrupt`."""

    def ended(self, runs: Collection[RunId]) -> frozenset[RunId]:
        """Those of `runs` that are finished or asked to stop."""

    def confirm_ended(self, pairs: Collection[tuple[RunId, NodeId]]) -> None:
        """Say that this process has no process of these runs any more that worked for these nodes.

        It goes into the history of the runs that were stopped, once for each node.
        """

    def append_logs(self, lines: Sequence[tuple[RunId, LogLine]]) -> None:
        """Append output of ClientApps to their runs' logs."""

    def disconnect(self) -> None:
        """Say goodbye: the nodes are offline at once. Gives back what the door holds."""
