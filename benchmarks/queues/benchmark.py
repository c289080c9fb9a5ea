"""What the benchmark `queue` measures: pushing, claiming and completing tasks in which nothing is done.

Every cell has flq and at most one other queue, with equally many processes, on the same PostgreSQL server (Celery on
the Valkey beside it). A side's tasks are pushed first; then its processes, which are up and connected, begin at the
same time. The figure is tasks by the time from the first statement that is sent to the last one that is answered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from benchmarks.failure import BenchmarkError
from benchmarks.harness import Benchmark, Cell, Goal, Measure, Metric, Side, Values
from benchmarks.queues.crew import Crew
from benchmarks.queues.servers import OURS, PROCESSES, SETTINGS, Servers

BULK = 1000
"""How many tasks are pushed with one statement."""

BROADCASTS = (1_000, 10_000)
HOSTED = 10
"""How many nodes a SuperNode hosts at most where tasks are claimed."""

QUICK_PART = 8
"""So many times less is done in quick measurements."""

METRICS = (
    Metric("push", "pushed, in flq one message for all", "tasks/s", "higher"),
    Metric("push_own", "pushed, each with a message of its own", "tasks/s", "higher"),
    Metric("done", "claimed and completed", "tasks/s", "higher"),
    Metric("life", "pushed, claimed, completed and pulled", "tasks/s", "higher"),
)


@dataclass(frozen=True, slots=True)
class Drain:
    """A cell in which tasks are claimed and completed: `batch` with one statement, by the peer `theirs`."""

    peer: str
    batch: int
    theirs: int
    tasks: int
    their_tasks: int
    goal: float | None = None

    @property
    def name(self) -> str:
        """The name of the cell."""
        if self.batch == self.theirs:
            return f"by {self.batch}, beside {self.peer}"
        return f"by {self.batch}, beside {self.peer} by {self.theirs}"


DRAINS = (
    Drain("procrastinate", batch=1, theirs=1, tasks=6_000, their_tasks=2_400, goal=2),
    Drain("procrastinate", batch=100, theirs=1, tasks=60_000, their_tasks=2_400, goal=25),
    Drain("pgqueuer", batch=10, theirs=10, tasks=24_000, their_tasks=16_000, goal=1),
    Drain("pgqueuer", batch=100, theirs=100, tasks=60_000, their_tasks=32_000, goal=2),
    Drain("pgmq", batch=100, theirs=100, tasks=60_000, their_tasks=80_000, goal=0.7),
    Drain("celery", batch=1, theirs=1, tasks=6_000, their_tasks=3_200, goal=2),
    Drain("celery", batch=10, theirs=1, tasks=24_000, their_tasks=3_200),
)
PUSHES = {"procrastinate": 20_000, "pgqueuer": 40_000, "pgmq": 60_000}
OUR_PUSHES = 80_000
BULK_CELL = "bulk push, beside {}"

LIFE = "whole life by 100"
LIFE_TASKS = 60_000
LIFE_BATCH = 100
BROADCAST_CELL = "broadcast to {:,} nodes"
BROADCAST_TASKS = 200_000

GOALS = (
    Goal(BULK_CELL.format("procrastinate"), "push", ratio=10),
    *(Goal(drain.name, "done", ratio=drain.goal) for drain in DRAINS if drain.goal is not None),
    Goal(LIFE, "life", at_least=25_000),
    *(Goal(BROADCAST_CELL.format(nodes), "push", at_least=150_000) for nodes in BROADCASTS),
)


def benchmark(*, quick: bool, peers: bool) -> Benchmark:
    """The benchmark."""
    servers, part = Servers(), QUICK_PART if quick else 1
    alone = [
        Cell(LIFE, {OURS: partial(_flq_life, servers, LIFE_TASKS // part)}),
        *(
            Cell(BROADCAST_CELL.format(nodes), {OURS: partial(_flq_broadcast, servers, nodes, part)})
            for nodes in BROADCASTS
        ),
    ]
    beside = [
        *(_bulk_cell(servers, peer, tasks, part, peers=peers) for peer, tasks in PUSHES.items()),
        *(_drain_cell(servers, drain, part, peers=peers) for drain in DRAINS),
    ]
    return Benchmark(
        name="queue",
        title="The queue: tasks in which nothing is done",
        metrics=METRICS,
        goals=GOALS,
        cells=[*beside, *alone],
        around=lambda: servers,
        warmups=0 if quick else 1,
        settings=_settings(),
    )


def _settings() -> dict[str, Any]:
    return {
        "processes_of_a_side": f"{PROCESSES}; one of them pushes, all of them claim",
        "tasks_of_a_push": BULK,
        "postgresql": SETTINGS,
        "flq": f"DbFleet and DbGrid, by SuperNodes that each host {HOSTED} nodes, or one where they claim by 1; a call"
        " of a function for each task; result, attempt and reply are stored; all but claims waits for the disk",
        "procrastinate": "concurrency 10 in each process, an async function for each job, done jobs stay; batch_defer",
        "pgqueuer": "asyncpg and uvloop, drain mode, an async function for each job, its log is kept",
        "pgmq": "its SQL file; read and archive, prepared, from a loop; a call of a function for each message",
        "celery": "pool solo, broker Valkey with appendfsync everysec, no results, a call of a function for each job",
    }


def _bulk_cell(servers: Servers, peer: str, tasks: int, part: int, *, peers: bool) -> Cell:
    sides: dict[str, Side] = {OURS: partial(_flq_push, servers, OUR_PUSHES // part)}
    if peers:
        sides[peer] = partial(_peer_push, servers, peer, tasks // part)
    return Cell(BULK_CELL.format(peer), sides)


def _drain_cell(servers: Servers, drain: Drain, part: int, *, peers: bool) -> Cell:
    sides: dict[str, Side] = {OURS: partial(_flq_drain, servers, drain.tasks // part, drain.batch)}
    if peers:
        sides[drain.peer] = partial(_peer_drain, servers, drain.peer, drain.their_tasks // part, drain.theirs)
    return Cell(drain.name, sides)


@contextmanager
def _connected(servers: Servers, nodes: int) -> Iterator[tuple[Crew, list[list[int]]]]:
    """Our crew, each of its processes with so many nodes; and their ids, by process."""
    crew = servers.crew(OURS)
    yield crew, crew.each("connect", nodes=nodes)
    crew.each("disconnect")  # after a failure nobody would answer: the crew is ended with the servers


@contextmanager
def _flq_push(servers: Servers, tasks: int) -> Iterator[Measure]:
    with _connected(servers, BULK // PROCESSES) as (crew, hosted):
        nodes = list(chain.from_iterable(hosted))

        def measure() -> Values:
            found = {}
            for metric, own in (("push", False), ("push_own", True)):
                crew.first("reset")
                servers.settle(OURS)
                found[metric] = [rate([crew.first("push", nodes=nodes, tasks=tasks, own=own)], tasks)]
            crew.first("reset")
            return found

        yield measure


@contextmanager
def _flq_drain(servers: Servers, tasks: int, batch: int) -> Iterator[Measure]:
    with _connected(servers, min(batch, HOSTED)) as (crew, hosted):
        nodes = [node for one_of_each in zip(*hosted, strict=True) for node in one_of_each]
        tasks -= tasks % len(nodes)  # equally many for each

        def measure() -> Values:
            crew.first("push", nodes=nodes, tasks=tasks)
            servers.settle(OURS)
            return {"done": [rate(crew.each("drain", tasks=tasks // PROCESSES, batch=batch), tasks)]}

        yield measure


@contextmanager
def _flq_life(servers: Servers, tasks: int) -> Iterator[Measure]:
    with _connected(servers, HOSTED) as (crew, _):
        tasks -= tasks % (PROCESSES * LIFE_BATCH)

        def measure() -> Values:
            servers.settle(OURS)
            return {"life": [rate(crew.each("live", tasks=tasks // PROCESSES, batch=LIFE_BATCH), tasks)]}

        yield measure


@contextmanager
def _flq_broadcast(servers: Servers, nodes: int, part: int) -> Iterator[Measure]:
    with _connected(servers, nodes // PROCESSES) as (crew, hosted):
        destinations = list(chain.from_iterable(hosted))
        times = max(BROADCAST_TASKS // part // nodes, 3)

        def measure() -> Values:
            servers.settle(OURS)
            took = crew.first("broadcast", nodes=destinations, times=times)
            crew.first("reset")
            return {"push": [nodes / seconds for seconds in took]}

        yield measure


@contextmanager
def _peer_push(servers: Servers, peer: str, tasks: int) -> Iterator[Measure]:
    crew = servers.crew(peer)

    def measure() -> Values:
        crew.first("reset")
        servers.settle(peer)
        found = rate([crew.first("push", tasks=tasks)], tasks)
        crew.first("reset")
        return {"push": [found], "push_own": [found]}  # it has no other form

    yield measure


@contextmanager
def _peer_drain(servers: Servers, peer: str, tasks: int, batch: int) -> Iterator[Measure]:
    crew = servers.crew(peer)

    def measure() -> Values:
        crew.first("reset")
        crew.first("push", tasks=tasks)
        servers.settle(peer)
        return {"done": [rate(crew.each("drain", batch=batch), tasks)]}

    yield measure


def rate(works: Sequence[dict[str, Any]], tasks: int) -> float:
    """Tasks per second, from what the processes say of their work. Raises `BenchmarkError` if it is not `tasks`."""
    done = sum(work["tasks"] for work in works)
    if done != tasks:
        raise BenchmarkError(f"{done} of {tasks} tasks were done")
    began = min(work["began"] for work in works if work["began"] is not None)
    ended = max(work["ended"] for work in works if work["ended"] is not None)
    return tasks / float(ended - began)
