"""flq's side: a process that is a SuperNode with some nodes, and the ServerApp of a run of its own.

It goes through the doors that SuperNodes and ServerApps go through, `DbFleet` and `DbGrid`. What a node does with a
task is a function that is called with the message and returns the reply.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import count, cycle, islice
from typing import Any

from benchmarks.queues.orders import Work, serve
from flq.link import attempts, processes, runs
from flq.link.attempts import AttemptClaim
from flq.link.database import Database
from flq.link.fleet import DbFleet
from flq.link.grid import DbGrid
from flq.wire.fleet import HEARTBEAT_SECONDS, Lease, NodeSpec, Reply
from flq.wire.grid import Push
from flq.wire.ids import FENCE_BITS, BatchId, NodeId, RunId
from flq.wire.runs import FeedCursor, ProcessSpec, Submission
from flq.wire.status import Outcome, ProcessKind, ResultStatus, Verdict

PUSHED = 1000
"""How many tasks are pushed with one statement."""

WAIT = 1.0
TTL = 3600.0
MESSAGE = b'{"number": 1}'


def train(message: bytes) -> bytes:
    """What a node does: nothing."""
    return message


class SuperNode:
    """Claims tasks for the nodes of this process, and submits their results."""

    def __init__(self, dsn: str, nodes: int) -> None:
        self._fleet = DbFleet(dsn)
        spec = _process(ProcessKind.SUPERNODE)
        hosted = self._fleet.connect(spec, [NodeSpec(name=f"{spec.process_id}-{n}") for n in range(nodes)])
        self.nodes = [node.node_id for node in hosted]
        self._stopped = threading.Event()
        self._beats = threading.Thread(target=self._beat, daemon=True)
        self._beats.start()

    def hear(self, seconds: float = 0.0) -> None:
        """Hear of pushes, waiting for the first."""
        self._fleet.wait(seconds)

    def claim(self, batch: int) -> Sequence[Lease]:
        """Up to `batch` tasks, from one statement."""
        per_node = -(-batch // len(self.nodes))
        token = secrets.randbits(FENCE_BITS) or 1
        return self._fleet.claim(self.nodes, per_node=per_node, total=batch, token=token).leases

    def submit(self, leases: Sequence[Lease]) -> None:
        """Do the tasks, and submit their results with one statement."""
        verdicts = self._fleet.submit([_reply(lease) for lease in leases])
        assert set(verdicts.values()) == {Verdict.ACCEPTED}, verdicts

    def close(self) -> None:
        """Disconnect."""
        self._stopped.set()
        self._beats.join()
        self._fleet.disconnect()

    def _beat(self) -> None:
        while not self._stopped.wait(HEARTBEAT_SECONDS):
            self._fleet.heartbeat()


class ServerApp:
    """The one attempt of a run, from its submission on."""

    def __init__(self, dsn: str) -> None:
        self._db = Database(dsn, application="flq benchmark")
        self._claim = _start_run(self._db)
        run_id = self._claim.run.run_id
        self._grid = DbGrid(dsn, run_id=run_id, token=self._claim.token, attempt=self._claim.attempt)
        self._grid.begin()
        self._sequences = count()

    def push(self, nodes: Sequence[NodeId], *, own: bool = False) -> BatchId:
        """A task for each of `nodes`, with one statement; `own`: each with a message of its own."""
        messages = tuple(b'{"number": %d}' % number for number in range(len(nodes))) if own else (MESSAGE,)
        sequence = next(self._sequences)
        pushed = self._grid.push(
            Push(
                sequence=sequence,
                kind="train",
                group="",
                round=None,
                ttl=TTL,
                node_ids=tuple(nodes),
                manifests=messages,
                objects=frozenset(),
                content_hash=hashlib.sha256(b"%d" % sequence).digest(),
            )
        )
        return pushed.batch_id

    def pull(self, batch_id: BatchId, cursor: FeedCursor) -> tuple[int, FeedCursor]:
        """How many results of a batch have come in, each of them read; and where to go on."""
        page = self._grid.arrived([batch_id], cursor)
        return len(self._grid.results(page.keys)), page.cursor

    def reset(self) -> None:
        """Leave no open task."""
        with self._db.connection() as connection:
            connection.execute("TRUNCATE flq_state.task, flq_state.task_message")

    def close(self) -> None:
        """End the run."""
        self._grid.close()
        attempts.finish(
            self._db,
            run_id=self._claim.run.run_id,
            token=self._claim.token,
            outcome=Outcome.COMPLETED,
            reason=None,
            exit_code=0,
        )
        self._db.close()


class Orders:
    """The orders of this worker."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._supernode: SuperNode | None = None
        self._app: ServerApp | None = None

    def connect(self, *, nodes: int) -> list[NodeId]:
        """Host so many nodes, and begin a run."""
        self._supernode = SuperNode(self._dsn, nodes)
        self._app = ServerApp(self._dsn)
        return self._supernode.nodes

    def disconnect(self) -> None:
        """Leave."""
        assert self._app is not None
        assert self._supernode is not None
        self._app.close()
        self._supernode.close()

    def reset(self) -> None:
        """Leave no open task."""
        assert self._app is not None
        self._app.reset()

    def push(self, *, nodes: Sequence[NodeId], tasks: int, own: bool = False) -> dict[str, Any]:
        """Push so many tasks to these nodes in turn, `PUSHED` with one statement."""
        assert self._app is not None
        done, destinations = Work(), cycle(nodes)
        while done.tasks < tasks:
            addressed = list(islice(destinations, min(PUSHED, tasks - done.tasks)))
            done.begin()
            self._app.push(addressed, own=own)
            done.did(len(addressed))
        return done.told()

    def broadcast(self, *, nodes: Sequence[NodeId], times: int) -> list[float]:
        """Push to all nodes at once, several times; how long each took, in seconds."""
        assert self._app is not None
        took = []
        for _ in range(times):
            began = time.monotonic()
            self._app.push(nodes)
            took.append(time.monotonic() - began)
        return took

    def drain(self, *, tasks: int, batch: int) -> dict[str, Any]:
        """Claim and submit so many tasks, which are there."""
        assert self._supernode is not None
        supernode, done = self._supernode, Work()
        supernode.hear()
        while done.tasks < tasks:
            done.begin()
            leases = supernode.claim(batch)
            if not leases:
                supernode.hear(WAIT)
                continue
            supernode.submit(leases)
            done.did(len(leases))
        return done.told()

    def live(self, *, tasks: int, batch: int) -> dict[str, Any]:
        """Push so many tasks by batches, claim, submit and pull them."""
        assert self._app is not None
        assert self._supernode is not None
        app, supernode, done, cursor = self._app, self._supernode, Work(), FeedCursor()
        addressed = list(islice(cycle(supernode.nodes), batch))
        while done.tasks < tasks:
            done.begin()
            batch_id = app.push(addressed)
            finished = 0
            while finished < batch:
                supernode.hear(WAIT)
                while leases := supernode.claim(batch - finished):
                    supernode.submit(leases)
                    finished += len(leases)
                    if finished == batch:
                        break
            pulled, cursor = app.pull(batch_id, cursor)
            assert pulled == batch, f"{pulled} results of {batch}"
            done.did(batch)
        return done.told()


def _reply(lease: Lease) -> Reply:
    started_at = datetime.now(UTC)
    manifest = train(lease.manifest)
    return Reply(
        key=lease.key,
        status=ResultStatus.OK,
        manifest=manifest,
        payload_bytes=len(manifest),
        started_at=started_at,
        ended_at=datetime.now(UTC),
    )


def _start_run(db: Database) -> AttemptClaim:
    spec = _process(ProcessKind.SUPEREXEC)
    processes.register(db, spec)
    run_id = runs.submit(
        db,
        Submission(
            app="benchmark",
            bundle=b"no app",
            config={},
            owner="benchmark",
            idempotency_key=uuid.uuid4().hex,
            seed=0,
        ),
    )
    while True:
        attempts.allocate(db)
        found = _claim_attempt(db, run_id, spec.process_id)
        if found is not None:
            return found


def _claim_attempt(db: Database, run_id: RunId, process_id: str) -> AttemptClaim | None:
    (row,) = runs.listing(db, run_id=run_id)
    return attempts.claim(db, run_id=run_id, attempt=row.attempt, process_id=process_id, job_id=str(uuid.uuid4()))


def _process(kind: ProcessKind) -> ProcessSpec:
    return ProcessSpec(
        process_id=str(uuid.uuid4()), kind=kind, host="localhost", pid=os.getpid(), version="benchmark", slots=1
    )


def main() -> None:
    """Carry out orders."""
    orders = Orders(os.environ["QUEUE_DSN"])
    names = ("connect", "disconnect", "reset", "push", "broadcast", "drain", "live")
    serve({name: getattr(orders, name) for name in names})


if __name__ == "__main__":
    main()
