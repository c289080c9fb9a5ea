"""Room on the disk of a node: tasks that lack it wait for it, as long as their deadlines let them."""

from __future__ import annotations

import time

from flq.log import get
from flq.node.outage import Backoff
from flq.node.reactor import Reactor
from flq.node.scheduler import Scheduler
from flq.node.tasks import HeldTask

log = get(__name__)


class Room:
    """For the main loop only. A task for whose reply there is no room is done again after a while."""

    def __init__(self, reactor: Reactor, scheduler: Scheduler) -> None:
        self._reactor = reactor
        self._scheduler = scheduler
        self._waiting: dict[HeldTask, Backoff] = {}

    def wait_for(self, task: HeldTask) -> bool:
        """Start a task again later; whether it waits for the first time."""
        first = task not in self._waiting
        if first:
            log.warning("this disk is full: task %d of run %d waits for room", task.task_id, task.run_id)
        backoff = self._waiting.setdefault(task, Backoff())
        if task.alarm is not None:
            task.alarm.cancel()
        self._scheduler.postpone(task)
        self._reactor.after(backoff.next(), lambda: self._again(task))
        return first

    def forget(self, task: HeldTask) -> None:
        """The task is over, or no longer ours."""
        self._waiting.pop(task, None)

    def _again(self, task: HeldTask) -> None:
        if task in self._waiting:
            self._scheduler.ready(task, time.monotonic())
