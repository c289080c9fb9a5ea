"""What the queue should do, in memory: the model that the state machine holds PostgreSQL against."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from flq.wire.fleet import Lease, TaskKey
from flq.wire.ids import NodeId, TaskId
from flq.wire.status import ResultStatus, Verdict


@dataclass(slots=True)
class Open:
    """An open task."""

    node_id: NodeId
    run_id: int
    batch_id: int
    token: int = 0
    epoch: int = 0
    attempt: int = 0
    leased: bool = False


@dataclass(slots=True)
class Model:
    """Open tasks, results, and the epochs of nodes."""

    most_attempts: int
    open: dict[TaskId, Open] = field(default_factory=dict)
    results: dict[TaskId, tuple[ResultStatus, int]] = field(default_factory=dict)
    epochs: dict[NodeId, int] = field(default_factory=dict)
    overdue: set[int] = field(default_factory=set)
    late: set[tuple[TaskId, int]] = field(default_factory=set)

    def claimable(self, nodes: Collection[NodeId]) -> set[TaskId]:
        """What a look at everything finds on some nodes."""
        return {
            task_id
            for task_id, task in self.open.items()
            if task.node_id in nodes
            and (not task.leased or task.epoch < self.epochs[task.node_id])
            and task.attempt < self.most_attempts
            and task.batch_id not in self.overdue
        }

    def held_by(self, token: int, nodes: Collection[NodeId]) -> set[TaskId]:
        """What a claim with this token has got and still has."""
        return {
            task_id
            for task_id, task in self.open.items()
            if task.token == token and task.node_id in nodes and task.epoch == self.epochs[task.node_id]
        }

    def claimed(self, leases: Iterable[Lease]) -> None:
        """A claim has brought these."""
        for lease in leases:
            task = self.open[lease.key.task_id]
            task.attempt += task.token != lease.key.token
            task.token, task.epoch, task.leased = lease.key.token, self.epochs[task.node_id], True
            assert lease.attempt == task.attempt

    def check_claim(self, leases: Collection[Lease], nodes: Collection[NodeId], per_node: int, total: int) -> None:
        """Nothing that is not due, no more than asked for, and the oldest of each run."""
        got = {lease.key.task_id for lease in leases}
        due = self.claimable(nodes)
        assert len(got) == len(leases) <= total
        assert got <= due
        per = Counter(lease.key.node_id for lease in leases)
        assert all(count <= per_node for count in per.values())

    def check_full_claim(self, leases: Collection[Lease], nodes: Collection[NodeId], per_node: int, total: int) -> None:
        """All that is due, up to the limits; of each run on a node the oldest."""
        got = {lease.key.task_id for lease in leases}
        due = self.claimable(nodes)
        wanted = Counter(self.open[task].node_id for task in due)
        assert len(got) == min(total, sum(min(count, per_node) for count in wanted.values()))
        for task_id in due - got:
            task = self.open[task_id]
            same = [other for other in got if self._same_run(self.open[other], task)]
            assert all(other < task_id for other in same)

    def held(self, key: TaskKey) -> bool:
        """Whether a key still holds its task."""
        task = self.open.get(key.task_id)
        return task is not None and task.token == key.token and task.epoch == self.epochs[task.node_id]

    def submitted(self, keys: Iterable[TaskKey]) -> dict[TaskId, Verdict]:
        """Finish what is held; says what becomes of each."""
        verdicts: dict[TaskId, Verdict] = {}
        for key in keys:
            if self.held(key):
                del self.open[key.task_id]
                self.results[key.task_id] = (ResultStatus.OK, key.token)
                verdicts[key.task_id] = Verdict.ACCEPTED
            elif self.results.get(key.task_id) == (ResultStatus.OK, key.token):
                verdicts[key.task_id] = Verdict.DUPLICATE
            else:
                self.late.add((key.task_id, key.token))
                verdicts[key.task_id] = Verdict.FENCED
        return verdicts

    def released(self, keys: Iterable[TaskKey]) -> set[TaskId]:
        """Give back what carries its token, whoever hosts the node now."""
        given = set()
        for key in keys:
            task = self.open.get(key.task_id)
            if task is not None and task.token == key.token:
                task.token, task.leased = 0, False
                given.add(key.task_id)
        return given

    def ended(self, which: Collection[TaskId], status: ResultStatus) -> int:
        """End open tasks without a reply."""
        for task_id in which:
            self.results[task_id] = (status, self.open.pop(task_id).token)
        return len(which)

    def tasks_of(self, batches: Collection[int]) -> set[TaskId]:
        """The open tasks of some batches."""
        return {task_id for task_id, task in self.open.items() if task.batch_id in batches}

    @staticmethod
    def _same_run(one: Open, other: Open) -> bool:
        return (one.node_id, one.run_id) == (other.node_id, other.run_id)
