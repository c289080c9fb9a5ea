"""Which task runs next. Pure bookkeeping: no processes, no clocks, no Fleet.

Tasks of one node and run are done one at a time and in the order of their ids, because each starts from the client
state that the one before it left. Between runs, the one with the fewest running tasks is served first; a run that
has no warm worker waits a little for one that has, so that many short runs do not evict each other's workers at
every task.
"""

from __future__ import annotations

import bisect
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from flq.node.tasks import HeldTask, Stage
from flq.wire.ids import NodeId, RunId, TaskId

PATIENCE_SECONDS = 0.5
"""How long a run without a warm worker is passed over in favour of runs that have one."""


@dataclass(slots=True)
class _RunQueue:
    """The tasks of one run: per node in the order of their ids, and the nodes whose first task can start."""

    lanes: dict[NodeId, list[HeldTask]] = field(default_factory=dict)
    startable: dict[NodeId, None] = field(default_factory=dict)
    busy: dict[NodeId, HeldTask] = field(default_factory=dict)
    held: int = 0
    running: int = 0
    waiting_since: float = 0.0
    served: int = 0


class Scheduler:
    """Holds every claimed task until it is done, and says which one to start."""

    def __init__(self) -> None:
        self._tasks: dict[TaskId, HeldTask] = {}
        self._runs: dict[RunId, _RunQueue] = {}
        self._per_node: dict[NodeId, int] = {}
        self._backlog = 0
        self._served = 0

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[HeldTask]:
        return iter(list(self._tasks.values()))

    def get(self, task_id: TaskId) -> HeldTask | None:
        """The task, if it is held."""
        return self._tasks.get(task_id)

    @property
    def backlog(self) -> int:
        """How many tasks have not been started."""
        return self._backlog

    @property
    def runs(self) -> Collection[RunId]:
        """The runs of the held tasks."""
        return self._runs.keys()

    def held_by(self, node_id: NodeId) -> int:
        """How many tasks of a node are held, at whatever stage."""
        return self._per_node.get(node_id, 0)

    def startable(self) -> int:
        """How many tasks could start now, were there enough slots."""
        return sum(len(queue.startable) for queue in self._runs.values())

    def of_run(self, run_id: RunId) -> list[HeldTask]:
        """The held tasks of a run."""
        return [task for task in self._tasks.values() if task.run_id == run_id]

    def add(self, task: HeldTask) -> None:
        """Take a claimed task in. It starts once it is `ready` and first in its node's line."""
        self._tasks[task.task_id] = task
        self._per_node[task.node_id] = self.held_by(task.node_id) + 1
        self._backlog += 1
        queue = self._runs.setdefault(task.run_id, _RunQueue())
        queue.held += 1
        lane = queue.lanes.setdefault(task.node_id, [])
        bisect.insort(lane, task, key=lambda held: held.task_id)
        if lane[0] is task:
            queue.startable.pop(task.node_id, None)  # one that could start has to wait for this one

    def ready(self, task: HeldTask, now: float) -> None:
        """Say that everything the task needs is here."""
        task.stage = Stage.READY
        self._look_at(self._runs[task.run_id], task.node_id, now)

    def next(self, *, warm: Collection[RunId], blank: bool, now: float) -> HeldTask | None:
        """The task to start now; from here on it runs and keeps its node and run busy.

        `warm` are the runs that have an idle worker, `blank` says that there is one that any run may have.
        """
        best: tuple[bool, int, int] | None = None
        chosen: _RunQueue | None = None
        for run_id, queue in self._runs.items():
            if not queue.startable or not (blank or run_id in warm):
                continue
            passed_over = run_id not in warm and now - queue.waiting_since < PATIENCE_SECONDS
            rank = (passed_over, queue.running, queue.served)
            if best is None or rank < best:
                best, chosen = rank, queue
        if chosen is None:
            return None
        self._served += 1
        chosen.served = self._served
        chosen.waiting_since = now
        node_id = next(iter(chosen.startable))
        del chosen.startable[node_id]
        return self._start(chosen, node_id)

    def _start(self, queue: _RunQueue, node_id: NodeId) -> HeldTask:
        lane = queue.lanes[node_id]
        task = lane.pop(0)
        if not lane:
            del queue.lanes[node_id]
        task.stage = Stage.RUNNING
        queue.busy[node_id] = task
        queue.running += 1
        self._backlog -= 1
        return task

    def is_next(self, task: HeldTask) -> bool:
        """Whether nothing of the task's node and run has to end before it can start."""
        queue = self._runs[task.run_id]
        lane = queue.lanes.get(task.node_id)
        return task.node_id not in queue.busy and lane is not None and lane[0] is task

    def more_follows(self, task: HeldTask) -> bool:
        """Whether other tasks of the run have not ended, none of which starts from what this one leaves."""
        waits = task.staged is not None and self.held_by(task.node_id) > 1
        return bool(self._runs[task.run_id].lanes) and not waits

    def postpone(self, task: HeldTask) -> None:
        """Take back that the task starts: something is missing. It is the next of its node again once it is `ready`."""
        queue = self._runs[task.run_id]
        del queue.busy[task.node_id]
        queue.running -= 1
        self._backlog += 1
        task.stage = Stage.PREPARING
        bisect.insort(queue.lanes.setdefault(task.node_id, []), task, key=lambda held: held.task_id)

    def computed(self, task: HeldTask, now: float, *, keeps_node: bool) -> None:
        """Say that the task's worker is done with it.

        With `keeps_node` the node's next task waits for the verdict: it must start from the state that this one
        leaves, if its reply is accepted.
        """
        if task.stage is Stage.RUNNING:
            self._runs[task.run_id].running -= 1
            if not keeps_node:
                self._free(task, now)
        elif task.stage in {Stage.PREPARING, Stage.READY}:
            self._withdraw(task, now)
        task.stage = Stage.REPLYING

    def remove(self, task: HeldTask, now: float) -> None:
        """Forget the task: it is over, or no longer ours."""
        if self._tasks.pop(task.task_id, None) is None:
            return
        left = self._per_node[task.node_id] - 1
        if left:
            self._per_node[task.node_id] = left
        else:
            del self._per_node[task.node_id]
        queue = self._runs[task.run_id]
        if task.stage in {Stage.PREPARING, Stage.READY}:
            self._withdraw(task, now)
        elif task.stage is Stage.RUNNING:
            queue.running -= 1
        self._free(task, now)
        queue.held -= 1
        if not queue.held:
            del self._runs[task.run_id]

    def _withdraw(self, task: HeldTask, now: float) -> None:
        """Take a task that was not started out of its node's line."""
        queue = self._runs[task.run_id]
        lane = queue.lanes[task.node_id]
        lane.remove(task)
        self._backlog -= 1
        queue.startable.pop(task.node_id, None)
        if not lane:
            del queue.lanes[task.node_id]
        self._look_at(queue, task.node_id, now)

    def _free(self, task: HeldTask, now: float) -> None:
        queue = self._runs[task.run_id]
        if queue.busy.get(task.node_id) is task:
            del queue.busy[task.node_id]
            self._look_at(queue, task.node_id, now)

    def _look_at(self, queue: _RunQueue, node_id: NodeId, now: float) -> None:
        """Note the node if its first task can start."""
        lane = queue.lanes.get(node_id)
        if not lane or node_id in queue.busy or node_id in queue.startable or lane[0].stage is not Stage.READY:
            return
        if not queue.startable:
            queue.waiting_since = now
        queue.startable[node_id] = None
