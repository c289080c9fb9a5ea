"""A task in this SuperNode's hands, from the claim to the verdict on its reply."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path

from flq.node.reactor import Timer
from flq.wire.fleet import Lease, TaskKey
from flq.wire.ids import NodeId, ObjectHash, RunId, TaskId


class Stage(Enum):
    """How far a task has come."""

    PREPARING = auto()  # its run's bundle or its objects are on their way
    READY = auto()  # waits for a slot
    RUNNING = auto()  # a worker has it
    REPLYING = auto()  # its reply is on its way to the SuperLink


@dataclass(slots=True, eq=False)
class HeldTask:
    """A claimed task. Its lease is replaced when the same task is claimed again under a new token."""

    lease: Lease
    node_name: str
    stage: Stage = Stage.PREPARING
    objects: dict[ObjectHash, int] = field(default_factory=dict)
    absent: set[ObjectHash] = field(default_factory=set)
    """Those of `objects` that are not in the cache yet."""

    staging: str = ""
    """Where the task's worker writes new client state."""

    scratch: str = ""
    """Where it writes large arrays of its reply; the folder exists if there are any."""

    staged: Path | None = None
    """The client state that the task's worker has written, promoted once the reply is accepted."""

    alarm: Timer | None = None
    """Goes off when the deadline passes while the task runs."""

    @property
    def key(self) -> TaskKey:
        """The key that the newest claim gave."""
        return self.lease.key

    @property
    def task_id(self) -> TaskId:
        """The task."""
        return self.lease.key.task_id

    @property
    def run_id(self) -> RunId:
        """The task's run."""
        return self.lease.key.run_id

    @property
    def node_id(self) -> NodeId:
        """The node that the task is addressed to."""
        return self.lease.key.node_id

    def remove_scratch(self) -> None:
        """Remove what the worker has written for its reply."""
        if self.scratch:
            shutil.rmtree(self.scratch, ignore_errors=True)
