"""Which version of the client state each task starts from: the store names it.

It is asked when the first task of a node and run comes, and when the run has gone over to another branch. Between these
only what this process hands in changes the answer, so that a run that goes its way costs one question for each node.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from flq.errors import Unreachable
from flq.log import get
from flq.node.lane import Lane
from flq.node.outage import Backoff, Outage
from flq.node.reactor import Reactor
from flq.node.scheduler import Scheduler
from flq.node.tasks import HeldTask
from flq.wire.fleet import Fleet, StateBase, StateVersion
from flq.wire.ids import NodeId, RunId, TaskId
from flq.wire.message import ErrorCode

log = get(__name__)


@dataclass(slots=True)
class _Known:
    """What the next task of a node and run starts from, if it is of this branch."""

    branch: int
    base: StateBase

    def covers(self, task: HeldTask) -> bool:
        """Whether this is what a task starts from."""
        version = self.base.version
        is_later = version is not None and version.run_id == task.run_id and version.task_id >= task.task_id
        return self.branch == task.lease.branch and not is_later


Failed = Callable[[HeldTask, int, str], None]


class Bases:
    """For the main loop only. `failed` is called for a task for which the store has no answer."""

    def __init__(self, fleet: Fleet, reactor: Reactor, outage: Outage, *, scheduler: Scheduler, failed: Failed) -> None:
        self._fleet = fleet
        self._reactor = reactor
        self._outage = outage
        self._scheduler = scheduler
        self._failed = failed
        self._lane = Lane("flq-state", reactor)
        self._known: dict[tuple[RunId, NodeId], _Known] = {}
        self._answers: dict[HeldTask, StateBase] = {}  # those that are of one task only
        self._asking: set[HeldTask] = set()
        self._postponed: set[HeldTask] = set()

    def foresee(self, task_ids: Iterable[TaskId]) -> None:
        """Ask about those of these tasks that nothing has to wait for, while their bundles and objects are fetched."""
        held = [task for task_id in task_ids if (task := self._scheduler.get(task_id)) is not None]
        self._ask([task for task in held if self._of(task) is None and self._scheduler.is_next(task)])

    def base(self, task: HeldTask) -> StateBase | None:
        """What a task starts from that is about to; if the store has to be asked first, the task is postponed."""
        base = self._of(task)
        if base is None:
            self._scheduler.postpone(task)
            self._postponed.add(task)
            self._ask([task])
        return base

    def accepted(self, task: HeldTask) -> None:
        """Learn that the reply of a task was accepted that has left a state."""
        key = task.run_id, task.node_id
        known = self._known.get(key)
        if known is not None and known.covers(task):
            version = StateVersion(run_id=task.run_id, node_id=task.node_id, task_id=task.task_id)
            known.base = StateBase(version)
        else:  # what is known is of another branch, or of a later task: ask anew
            self._known.pop(key, None)

    def forget(self, task: HeldTask) -> None:
        """The task is over, or no longer ours."""
        self._postponed.discard(task)
        self._answers.pop(task, None)

    def forget_run(self, run_id: RunId) -> None:
        """The run is over, for now at least."""
        for key in [key for key in self._known if key[0] == run_id]:
            del self._known[key]

    def forget_all(self) -> None:
        """The store may be another one than before."""
        self._known.clear()
        self._answers.clear()

    def close(self) -> None:
        """End the thread."""
        self._lane.close()

    def _of(self, task: HeldTask) -> StateBase | None:
        known = self._known.get((task.run_id, task.node_id))
        return known.base if known is not None and known.covers(task) else self._answers.get(task)

    def _ask(self, tasks: Sequence[HeldTask]) -> None:
        asked = [task for task in tasks if task not in self._asking]
        if asked:
            self._asking.update(asked)
            self._call(asked, Backoff())

    def _call(self, tasks: Sequence[HeldTask], backoff: Backoff) -> None:
        keys = [task.key for task in tasks]

        def done(bases: dict[TaskId, StateBase]) -> None:
            self._outage.succeeded()
            self._asking.difference_update(tasks)
            for task in tasks:
                base = bases[task.task_id]
                if base.is_newest:
                    self._known[task.run_id, task.node_id] = _Known(task.lease.branch, base)
                elif self._scheduler.get(task.task_id) is task:
                    self._answers[task] = base
                if task in self._postponed:
                    self._postponed.discard(task)
                    self._scheduler.ready(task, time.monotonic())

        def failed(exc: Exception) -> None:
            if isinstance(exc, Unreachable):
                self._outage.failed(exc, what="asking what tasks start from")
                self._reactor.after(backoff.next(), lambda: self._call(tasks, backoff))
                return
            log.error("the store does not say what client state tasks start from: %s", exc, exc_info=exc)
            self._asking.difference_update(tasks)
            text = f"STATE_UNAVAILABLE: the store does not say what client state the task starts from: {exc}"
            for task in self._postponed.intersection(tasks):
                self._failed(task, ErrorCode.STATE_UNAVAILABLE, text)

        self._lane.call(lambda: self._fleet.state_bases(keys), done=done, failed=failed)
