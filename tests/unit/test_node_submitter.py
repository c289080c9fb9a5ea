"""When replies are handed in: at once if something waits for them, else together."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from flq.node.cache import ObjectCache
from flq.node.outage import Outage
from flq.node.reactor import Reactor
from flq.node.state import ClientStates
from flq.node.submitter import MOST_AT_ONCE, Submitter
from flq.node.tasks import HeldTask
from flq.wire.fleet import Lease, Reply, TaskKey
from flq.wire.ids import BatchId, NodeId, RunId, TaskId
from flq.wire.status import ResultStatus, Verdict

NUMBERS = itertools.count(1)


class Link:
    """Accepts every reply, and writes down which came together."""

    def __init__(self) -> None:
        self.submissions: list[list[TaskId]] = []

    def submit(self, replies: Sequence[Reply]) -> dict[TaskId, Verdict]:
        self.submissions.append([reply.key.task_id for reply in replies])
        return dict.fromkeys(self.submissions[-1], Verdict.ACCEPTED)


class Counter:
    """A submitter on a loop of its own; `last` are the tasks after which nothing follows."""

    def __init__(self, folder: Path) -> None:
        self.link = Link()
        self.last: set[TaskId] = set()
        self.settled: list[TaskId] = []
        self.reactor = Reactor()
        fleet: Any = self.link
        self.submitter = Submitter(
            fleet,
            self.reactor,
            Outage(),
            cache=ObjectCache(folder / "objects", 1 << 20),
            states=ClientStates(folder / "state"),
            settled=lambda task, _verdict: self.settled.append(task.task_id),
            more_follows=lambda task: task.task_id not in self.last,
        )

    def offer(self, *, last: bool = False) -> TaskId:
        task = a_task()
        if last:
            self.last.add(task.task_id)
        now = datetime.now(UTC)
        self.submitter.offer(task, Reply(key=task.key, status=ResultStatus.OK, started_at=now, ended_at=now))
        return task.task_id

    def turn_until(self, over: Callable[[], bool]) -> None:
        self.reactor.run(each=lambda: None, until=over)

    def turn_until_idle(self) -> None:
        self.turn_until(lambda: self.submitter.idle)


def a_task() -> HeldTask:
    number = next(NUMBERS)
    key = TaskKey(
        node_id=NodeId(number), run_id=RunId(1), task_id=TaskId(number), batch_id=BatchId(1), token=number + 7
    )
    lease = Lease(key=key, attempt=1, branch=0, kind="train", group="", created_at=0, deadline=1, manifest=b"")
    return HeldTask(lease, f"node-{number}")


@pytest.fixture
def counter(tmp_path: Path) -> Iterator[Counter]:
    found = Counter(tmp_path)
    yield found
    found.submitter.close()
    found.reactor.close()


def test_the_first_reply_goes_at_once_and_those_that_follow_go_together(counter: Counter):
    first = counter.offer()
    counter.turn_until(lambda: counter.settled == [first])
    more = [counter.offer() for _ in range(5)]
    counter.turn_until_idle()
    assert counter.link.submissions == [[first], more]


def test_replies_that_are_gathered_go_with_the_one_that_something_waits_for(counter: Counter, monkeypatch):
    monkeypatch.setattr("flq.node.submitter.GATHER_SECONDS", 3600.0)
    first = counter.offer()
    counter.turn_until(lambda: counter.settled == [first])
    more = [counter.offer() for _ in range(3)]
    assert counter.link.submissions == [[first]]
    last = counter.offer(last=True)
    counter.turn_until_idle()
    assert counter.link.submissions == [[first], [*more, last]]


def test_no_more_than_fit_are_gathered(counter: Counter, monkeypatch):
    monkeypatch.setattr("flq.node.submitter.GATHER_SECONDS", 3600.0)
    first = counter.offer()
    counter.turn_until(lambda: counter.settled == [first])
    more = [counter.offer() for _ in range(MOST_AT_ONCE)]
    counter.turn_until_idle()
    assert counter.link.submissions == [[first], more]
