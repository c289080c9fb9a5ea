"""Which task runs next, what is claimed, and how much."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flq.node.claims import SPARE_PER_NODE, ClaimPlan, ClaimRequest, Pace
from flq.node.scheduler import PATIENCE_SECONDS, Scheduler
from flq.node.tasks import HeldTask, Stage
from flq.wire.fleet import Claimed, Lease, TaskKey
from flq.wire.ids import BatchId, NodeId, RunId, TaskId

NUMBERS = itertools.count(1)


def held(run: int = 1, node: int = 1, task: int | None = None) -> HeldTask:
    key = TaskKey(
        node_id=NodeId(node),
        run_id=RunId(run),
        task_id=TaskId(next(NUMBERS) if task is None else task),
        batch_id=BatchId(1),
        token=5,
    )
    lease = Lease(key=key, attempt=1, branch=0, kind="train", group="", created_at=0, deadline=1, manifest=b"")
    return HeldTask(lease, f"node-{node}")


class Desk:
    """A scheduler with a clock and workers for every run."""

    def __init__(self) -> None:
        self.scheduler = Scheduler()
        self.now = 0.0
        self.warm: set[RunId] = set()
        self.blank = True

    def ready(self, *tasks: HeldTask) -> None:
        for task in tasks:
            self.scheduler.add(task)
        for task in tasks:
            self.scheduler.ready(task, self.now)

    def next(self) -> HeldTask | None:
        return self.scheduler.next(warm=self.warm, blank=self.blank, now=self.now)

    def finish(self, task: HeldTask, *, keeps_node: bool = False) -> None:
        self.scheduler.computed(task, self.now, keeps_node=keeps_node)


def test_one_node_and_run_at_a_time_and_in_order():
    desk = Desk()
    second, first = held(task=12), held(task=11)
    desk.ready(second, first)
    assert desk.next() is first
    assert desk.next() is None
    desk.finish(first)
    assert desk.next() is second


def test_a_node_may_work_for_two_runs():
    desk = Desk()
    desk.ready(held(run=1), held(run=2))
    assert desk.next()
    assert desk.next()


def test_a_task_waits_for_an_earlier_one_that_is_not_ready():
    desk = Desk()
    first, second = held(), held()
    desk.scheduler.add(second)
    desk.scheduler.ready(second, 0)
    desk.scheduler.add(first) if first.task_id < second.task_id else None
    assert desk.next() is None
    desk.scheduler.ready(first, 0)
    assert desk.next() is first


def test_state_keeps_the_node_until_the_verdict():
    desk = Desk()
    first, second = held(), held()
    desk.ready(first, second)
    assert desk.next() is first
    desk.finish(first, keeps_node=True)
    assert desk.next() is None
    desk.scheduler.remove(first, 0)
    assert desk.next() is second


def test_the_run_with_the_fewest_running_tasks_is_served():
    desk = Desk()
    desk.ready(*(held(run=1, node=node) for node in range(6)), *(held(run=2, node=node) for node in range(6)))
    runs = [task.run_id for task in iter(desk.next, None)]
    assert runs == [1, 2] * 6


def test_runs_take_turns():
    desk = Desk()
    desk.ready(*(held(run=run, node=node) for run in (1, 2, 3) for node in range(3)))
    order = []
    while task := desk.next():
        order.append(int(task.run_id))
        desk.finish(task)
    assert order == [1, 2, 3] * 3


def test_a_run_without_a_warm_worker_waits_a_little():
    desk = Desk()
    desk.warm = {RunId(1)}
    desk.ready(*(held(run=1, node=node) for node in range(4)), held(run=2))
    order = []
    for _ in range(4):
        task = desk.next()
        assert task is not None
        order.append(int(task.run_id))
        desk.finish(task)
        desk.now += PATIENCE_SECONDS * 0.6
    assert order == [1, 1, 2, 1]


def test_without_a_blank_worker_only_warm_runs_are_served():
    desk = Desk()
    desk.blank = False
    desk.warm = {RunId(2)}
    desk.ready(held(run=1), wanted := held(run=2))
    assert desk.next() is wanted
    assert desk.next() is None


def test_tasks_can_be_removed_at_any_stage():
    desk = Desk()
    waiting, ready, running, replying = (held(node=node) for node in range(4))
    for task in (waiting, ready, running, replying):
        desk.scheduler.add(task)
    for task in (replying, running, ready):
        desk.scheduler.ready(task, 0)
    assert [desk.next(), desk.next()] == [replying, running]
    desk.finish(replying)
    assert (desk.scheduler.backlog, desk.scheduler.startable(), len(desk.scheduler)) == (2, 1, 4)
    for task in (waiting, ready, running, replying):
        desk.scheduler.remove(task, 0)
        desk.scheduler.remove(task, 0)
    assert (desk.scheduler.backlog, desk.scheduler.startable(), len(desk.scheduler)) == (0, 0, 0)
    assert not desk.scheduler.runs


def test_a_task_that_fails_before_it_starts():
    desk = Desk()
    first, second = held(), held()
    desk.ready(first, second)
    desk.finish(first)
    assert first.stage is Stage.REPLYING
    assert desk.next() is second


def act(desk: Desk, known: list[HeldTask], data: st.DataObject, number: int) -> None:
    """Anything that can happen to a scheduler."""
    wanted = data.draw(st.sampled_from(["add", "ready", "next", "finish", "remove"]))
    if wanted == "add":
        # Ids go down, so that later ones go first in line.
        task = held(run=data.draw(st.integers(1, 3)), node=data.draw(st.integers(1, 3)), task=1000 - number)
        desk.scheduler.add(task)
        known.append(task)
    elif wanted == "next":
        desk.next()
    elif known:
        task = data.draw(st.sampled_from(known))
        if wanted == "ready" and task.stage is Stage.PREPARING:
            desk.scheduler.ready(task, 0)
        elif wanted == "finish" and task.stage is not Stage.REPLYING:
            desk.finish(task, keeps_node=data.draw(st.booleans()) and task.stage is Stage.RUNNING)
        elif wanted == "remove":
            desk.scheduler.remove(task, 0)
            known.remove(task)


def check_books(scheduler: Scheduler, known: list[HeldTask]) -> None:
    running = [(task.run_id, task.node_id) for task in known if task.stage is Stage.RUNNING]
    assert len(set(running)) == len(running)
    assert len(scheduler) == len(known)
    assert scheduler.backlog == sum(task.stage in {Stage.PREPARING, Stage.READY} for task in known)
    assert set(scheduler.runs) == {task.run_id for task in known}
    for node in range(1, 4):
        assert scheduler.held_by(NodeId(node)) == sum(task.node_id == node for task in known)


@given(st.data())
def test_whatever_happens_the_books_balance_and_nothing_is_stuck(data: st.DataObject):
    desk = Desk()
    known: list[HeldTask] = []
    for number in range(data.draw(st.integers(1, 40))):
        act(desk, known, data, number)
        check_books(desk.scheduler, known)
    for task in known:
        if task.stage is Stage.PREPARING:
            desk.scheduler.ready(task, 0)
    while known:
        for task in [task for task in known if task.stage in {Stage.RUNNING, Stage.REPLYING}]:
            desk.scheduler.remove(task, 0)
            known.remove(task)
        assert desk.next() or not known


# --- claims


def claimed(*nodes: int) -> Claimed:
    return Claimed(tuple(held(node=node).lease for node in nodes))


def plan_of(*nodes: int) -> ClaimPlan:
    plan = ClaimPlan()
    plan.host(NodeId(node) for node in nodes)
    return plan


def request(plan: ClaimPlan, *, capacity: int = 10, backlog: int = 0, **held_by: int) -> ClaimRequest | None:
    return plan.request(capacity=capacity, backlog=backlog, held_by=lambda node: held_by.get(f"n{node}", 0))


def test_a_quiet_supernode_claims_once_and_then_waits_to_be_woken():
    plan = plan_of(1, 2)
    first = request(plan)
    assert first == ClaimRequest((NodeId(1), NodeId(2)), per_node=5, total=10)
    plan.brought(first, claimed(1))
    assert request(plan) is None
    plan.wake()
    assert request(plan)


def test_it_claims_again_once_less_than_half_is_left():
    plan = plan_of(1)
    first = request(plan)
    assert first
    plan.brought(first, claimed(*[1] * 10))
    assert request(plan, backlog=10) is None
    assert request(plan, backlog=6) is None
    assert request(plan, backlog=5) == ClaimRequest((NodeId(1),), per_node=10, total=5)


def test_a_node_that_brought_all_it_could_stays_hungry():
    plan = plan_of(1, 2, 3)
    first = request(plan)
    assert first
    assert (first.per_node, first.total) == (4, 12)
    plan.brought(first, claimed(1, 1, 1, 1, 2))
    assert request(plan) == ClaimRequest((NodeId(1),), per_node=4, total=10)
    assert request(plan, n1=4) is None


def test_one_claim_takes_a_push_to_more_nodes_than_there_is_room_for():
    plan = plan_of(*range(1, 101))
    first = request(plan)
    assert first == ClaimRequest(tuple(NodeId(n) for n in range(1, 101)), per_node=2, total=200)
    plan.brought(first, claimed(*range(1, 101)))
    assert request(plan, backlog=100, **{f"n{n}": 1 for n in range(1, 101)}) is None
    assert request(plan) is None


def test_what_is_pushed_later_is_claimed_although_there_is_enough_at_hand():
    plan = plan_of(1, 2)
    first = request(plan)
    assert first
    plan.brought(first, claimed(*[1] * 5, *[2] * 5))
    assert request(plan, backlog=10, n1=5, n2=5) is None
    plan.wake()
    assert request(plan, backlog=10, n1=5, n2=5) == ClaimRequest((NodeId(1), NodeId(2)), per_node=5, total=2)


def test_wake_ups_do_not_heap_tasks_on_a_node():
    plan = plan_of(1, 2)
    full = 5 + SPARE_PER_NODE
    plan.wake()
    assert request(plan, backlog=full, n1=full) == ClaimRequest((NodeId(2),), per_node=5, total=5)
    plan.wake()
    assert request(plan, backlog=2 * full, n1=full, n2=full) is None


def test_nodes_that_are_dropped_are_claimed_for_no_more():
    plan = plan_of(1, 2)
    plan.drop([NodeId(1)])
    plan.wake()
    found = request(plan)
    assert found
    assert found.nodes == (2,)
    plan.drop([NodeId(2)])
    assert request(plan) is None


@pytest.mark.parametrize(("seconds", "capacity"), [(0.001, 512), (0.01, 200), (0.1, 20), (60.0, 8)])
def test_about_a_seconds_work_is_kept_at_hand(seconds, capacity):
    pace = Pace(slots=2)
    assert pace.capacity == 64
    for _ in range(50):
        pace.took(seconds)
    assert pace.capacity == capacity


def test_more_follows_while_tasks_of_the_run_have_not_started():
    desk = Desk()
    desk.ready(held(run=1, node=1), held(run=1, node=2))
    first = desk.next()
    assert first is not None
    desk.finish(first)
    assert desk.scheduler.more_follows(first)
    desk.ready(held(run=2, node=1))
    second = desk.next()
    while second is not None and second.run_id != first.run_id:
        second = desk.next()
    assert second is not None
    assert not desk.scheduler.more_follows(first), "the last task of the run has started"


def test_nothing_follows_a_reply_whose_verdict_its_node_waits_for():
    desk = Desk()
    desk.ready(held(task=101), held(task=102), held(node=2, task=103))
    first, other = desk.next(), desk.next()
    assert first is not None
    assert other is not None
    first.staged = other.staged = Path("there")
    for task in (first, other):
        desk.finish(task, keeps_node=True)
    assert not desk.scheduler.more_follows(first)
    assert desk.scheduler.more_follows(other)
