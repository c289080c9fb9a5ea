"""The benchmark `claims`: what it takes to claim one task, in a database that is new, has a history, or is bloated.

Three databases on one server, each with a ServerApp and a SuperNode of its own, which speak to it through the doors
that the real ones use. Blocks of claims take turns, so that all three are measured in the same seconds.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import secrets
import statistics
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import psycopg
from psycopg.conninfo import make_conninfo

from benchmarks import flq_federation
from benchmarks.failure import BenchmarkError
from benchmarks.harness import Benchmark, Cell, Goal, Measure, Metric, Values
from flq.link import attempts, processes, runs, schema
from flq.link.attempts import AttemptClaim
from flq.link.database import Database
from flq.link.fleet import DbFleet
from flq.link.grid import DbGrid
from flq.local import federation as embedded
from flq.wire.fleet import Lease, NodeSpec, Reply
from flq.wire.grid import Push
from flq.wire.ids import FENCE_BITS, NodeId
from flq.wire.runs import ProcessSpec, Submission
from flq.wire.status import ProcessKind, ResultStatus

NODES = 100
BLOCKS = 20
"""Pushes to all nodes that are measured in a repeat, for each of the databases."""

ROWS = 10_000_000
QUICK_ROWS = 100_000
ROWS_PER_COMMIT = 1_000_000
CHURN_SECONDS = 60.0
QUICK_CHURN_SECONDS = 5.0
MANIFEST = bytes(200)
HEARD_SECONDS = 10.0
TTL = 3600.0

CELL = f"one task of one node, {NODES} nodes"
FRESH, HISTORY, CHURNED = "fresh", "history", "churned"
SLOWEST = 0.99
WITHIN = 1.3

METRICS = (
    Metric(FRESH, "claim p50, fresh database", "s"),
    Metric(HISTORY, "claim p50, with a history of finished tasks", "s"),
    Metric(CHURNED, "claim p50, churned under a held snapshot", "s"),
    Metric(f"{HISTORY}_ratio", "p50 with a history / fresh", "x"),
    Metric(f"{CHURNED}_ratio", "p50 churned / fresh", "x"),
    Metric(f"{FRESH}_slow", "claim p99, fresh database", "s"),
    Metric(f"{HISTORY}_slow", "claim p99, with a history of finished tasks", "s"),
    Metric(f"{CHURNED}_slow", "claim p99, churned under a held snapshot", "s"),
)
GOALS = (Goal(CELL, f"{HISTORY}_ratio", at_most=WITHIN), Goal(CELL, f"{CHURNED}_ratio", at_most=WITHIN))

STEPS = """
    INSERT INTO flq_state.step (run_id, branch, sequence, kind, attempt)
    SELECT %(run_id)s, 0, n - 1, 'push', 1 FROM generate_series(1, %(batches)s::bigint) n
"""
BATCHES = """
    INSERT INTO flq_state.batch (run_id, branch, sequence, attempt, kind, group_id, round, tasks, deadline,
                                 content_hash, manifest)
    SELECT %(run_id)s, 0, n - 1, 1, 'train', '', 1, %(nodes)s, clock_timestamp(), sha256(int8send(n)), %(manifest)s
    FROM generate_series(1, %(batches)s::bigint) n
"""
RESULTS = """
    INSERT INTO flq_state.result (batch_id, task_id, run_id, node_id, status, manifest, metrics, attempt, token,
                                  process_id, claimed_at, started_at)
    SELECT b.batch_id, (b.batch_id - 1) * %(nodes)s + w.place, b.run_id, w.node_id, 'ok', %(manifest)s,
           '{"loss": 0.5}', 1, (random() * 4e18)::bigint, %(process_id)s, b.created_at, b.created_at
    FROM flq_state.batch b, unnest(%(node_ids)s::bigint[]) WITH ORDINALITY w(node_id, place)
    WHERE b.batch_id > %(after)s AND b.batch_id <= %(up_to)s
    ORDER BY b.batch_id, w.place
"""
ATTEMPTS = """
    INSERT INTO flq_state.task_attempt (task_id, attempt, run_id, node_id, process_id, claimed_at, reason)
    SELECT task_id, attempt, run_id, node_id, process_id, claimed_at, 'ok'
    FROM flq_state.result
    WHERE batch_id > %(after)s AND batch_id <= %(up_to)s
    ORDER BY task_id
"""
NEXT_TASK = "SELECT setval(pg_get_serial_sequence('flq_state.task', 'task_id'), %(rows)s)"
COUNTS = "SELECT (SELECT count(*) FROM flq_state.result), (SELECT count(*) FROM flq_state.task_attempt)"


@dataclass(frozen=True, slots=True)
class Extent:
    """How much history, and how long a churn."""

    rows: int
    seconds: float


class Queue:
    """A run on a database, and the nodes that work for it: what a ServerApp and a SuperNode do, in this process."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._db = Database(dsn, application="flq benchmark")
        self._attempt = _attempt(self._db)
        self._grid = DbGrid(
            dsn, run_id=self._attempt.run.run_id, token=self._attempt.token, attempt=self._attempt.attempt
        )
        self._grid.begin()
        self._fleet = DbFleet(dsn)
        self._process = _process(ProcessKind.SUPERNODE)
        hosted = self._fleet.connect(self._process, [NodeSpec(name=f"node-{n}") for n in range(NODES)])
        self.nodes = tuple(node.node_id for node in hosted)
        self._sequences = itertools.count()

    def close(self) -> None:
        """Close the doors."""
        self._fleet.disconnect()
        self._grid.close()
        self._db.close()

    def add_history(self, rows: int) -> None:
        """Finished tasks, with results and attempts, in batches to all nodes: what the run has done so far."""
        batches = rows // NODES
        values = {
            "run_id": self._attempt.run.run_id,
            "nodes": NODES,
            "node_ids": list(self.nodes),
            "process_id": self._process.process_id,
            "batches": batches,
            "rows": rows,
            "manifest": MANIFEST,
        }
        step = ROWS_PER_COMMIT // NODES
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(STEPS, values)
            connection.execute(BATCHES, values)
            for after in range(0, batches, step):
                bounds = {"after": after, "up_to": min(after + step, batches)}
                with connection.transaction():
                    connection.execute(RESULTS, {**values, **bounds})
                    connection.execute(ATTEMPTS, bounds)
            connection.execute(NEXT_TASK, values)
            _insist(connection, rows)
        self._sequences = itertools.count(batches)

    def churn(self, seconds: float) -> int:
        """Push, claim and submit, all nodes at once, as fast as it goes; returns how many tasks."""
        done, until = 0, time.monotonic() + seconds
        while time.monotonic() < until:
            self._push()
            leases = self._claim(self.nodes, total=NODES * 2)
            self._submit(leases)
            done += len(leases)
        return done

    def block(self) -> list[float]:
        """Push a task to each node, and claim them node by node; returns how long each claim took."""
        self._push()
        took: list[float] = []
        leases: list[Lease] = []
        for node_id in self.nodes:
            begun = time.perf_counter()
            leases += self._claim((node_id,), total=1)
            took.append(time.perf_counter() - begun)
        self._submit(leases)
        return took

    def _push(self) -> None:
        sequence = next(self._sequences)
        self._grid.push(
            Push(
                sequence=sequence,
                kind="train",
                group="",
                round=1,
                ttl=TTL,
                node_ids=self.nodes,
                manifests=(MANIFEST,),
                objects=frozenset(),
                content_hash=hashlib.sha256(str(sequence).encode()).digest(),
            )
        )
        give_up = time.monotonic() + HEARD_SECONDS
        while not self._fleet.wait(HEARD_SECONDS).tasks:  # what a SuperNode hears says where its claims begin
            if time.monotonic() > give_up:
                raise BenchmarkError("a push was not heard")

    def _claim(self, nodes: tuple[NodeId, ...], *, total: int) -> tuple[Lease, ...]:
        claimed = self._fleet.claim(nodes, per_node=1, total=total, token=secrets.randbits(FENCE_BITS) or 1)
        if len(claimed.leases) != len(nodes):
            raise BenchmarkError(f"{len(nodes)} nodes with a task each were given {len(claimed.leases)}")
        return claimed.leases

    def _submit(self, leases: tuple[Lease, ...] | list[Lease]) -> None:
        now = datetime.now(UTC)
        self._fleet.submit(
            [
                Reply(key=lease.key, status=ResultStatus.OK, manifest=MANIFEST, started_at=now, ended_at=now)
                for lease in leases
            ]
        )


def benchmark(*, quick: bool, peers: bool) -> Benchmark:  # noqa: ARG001 - as all benchmarks are made
    """The benchmark."""
    extent = Extent(QUICK_ROWS, QUICK_CHURN_SECONDS) if quick else Extent(ROWS, CHURN_SECONDS)
    return Benchmark(
        name="claims",
        title="Claims of one task: with a history, and after churn under a held snapshot",
        metrics=METRICS,
        goals=GOALS,
        cells=[Cell(CELL, {"flq": partial(_side, extent)})],
        warmups=1,
        settings={
            "claims_of_a_repeat": BLOCKS * NODES,
            "finished_rows": f"{extent.rows:,}, in result and in task_attempt",
            "churn_seconds": extent.seconds,
        },
    )


def measure(queues: dict[str, Queue]) -> Values:
    """Blocks of claims in turn, every second time in the opposite order."""
    took: dict[str, list[float]] = {name: [] for name in queues}
    for number in range(BLOCKS):
        for name in list(queues) if number % 2 else reversed(queues):
            took[name] += queues[name].block()
    return {**took, **compared(took)}


def compared(took: dict[str, list[float]]) -> dict[str, list[float]]:
    """How the medians compare with that of the fresh database, and the 99th percentile of each."""
    fresh = statistics.median(took[FRESH])
    ratios = {f"{name}_ratio": [statistics.median(took[name]) / fresh] for name in (HISTORY, CHURNED)}
    slow = {f"{name}_slow": [sorted(times)[int(len(times) * SLOWEST)]] for name, times in took.items()}
    return {**ratios, **slow}


@contextmanager
def _side(extent: Extent) -> Iterator[Measure]:
    with flq_federation.federation() as federation, ExitStack() as stack:
        federation.up(1)
        addresses = embedded.addresses(federation.home)
        assert addresses is not None, "it is up"
        queues = {name: stack.enter_context(_queue(addresses.dsn, name)) for name in (FRESH, HISTORY, CHURNED)}
        queues[HISTORY].add_history(extent.rows)
        _settle(queues[FRESH], queues[HISTORY])
        stack.enter_context(_held_snapshot(queues[CHURNED]))
        queues[CHURNED].churn(extent.seconds)
        yield partial(measure, queues)


@contextmanager
def _queue(dsn: str, name: str) -> Iterator[Queue]:
    """A queue on a new database of the server."""
    database = f"claims_{name}"
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {database}")
    own = make_conninfo(dsn, dbname=database)
    schema.upgrade(own)
    queue = Queue(own)
    try:
        yield queue
    finally:
        queue.close()


@contextmanager
def _held_snapshot(queue: Queue) -> Iterator[None]:
    """A transaction that looks at the database as it is now: what dies from here on cannot be removed."""
    with psycopg.connect(queue.dsn) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("SELECT count(*) FROM flq_state.task")
        yield


def _settle(*queues: Queue) -> None:
    """Pay for what was written before anything is measured."""
    for queue in queues:
        with psycopg.connect(queue.dsn, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")
            connection.execute("CHECKPOINT")


def _insist(connection: psycopg.Connection[tuple[int, ...]], rows: int) -> None:
    found = connection.execute(COUNTS).fetchone()
    if found != (rows, rows):
        raise BenchmarkError(f"the history has {found} rows, not {rows} results and attempts")


def _attempt(db: Database) -> AttemptClaim:
    """A run whose ServerApp is this process."""
    superexec = _process(ProcessKind.SUPEREXEC)
    processes.register(db, superexec)
    submission = Submission(
        app="benchmark", bundle=b"none", config={}, owner="benchmark", idempotency_key=uuid.uuid4().hex, seed=0
    )
    run_id = runs.submit(db, submission)
    (job,) = attempts.allocate(db)
    claim = attempts.claim(
        db, run_id=run_id, attempt=job.attempt, process_id=superexec.process_id, job_id=str(job.job_id)
    )
    if claim is None:
        raise BenchmarkError(f"the attempt of run {run_id} could not be claimed")
    return claim


def _process(kind: ProcessKind) -> ProcessSpec:
    return ProcessSpec(process_id=str(uuid.uuid4()), kind=kind, host="benchmark", pid=os.getpid(), version="0", slots=1)
