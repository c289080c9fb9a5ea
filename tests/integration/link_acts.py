"""What tests of link do again and again: make nodes, runs, attempts, pushes and replies, in one line each."""

from __future__ import annotations

import hashlib
import itertools
import os
import secrets
import uuid
from contextlib import ExitStack
from datetime import UTC, datetime

from flq.link import attempts, nodes, processes, runs
from flq.link.attempts import AttemptClaim
from flq.link.database import Database
from flq.link.fleet import DbFleet
from flq.link.grid import DbGrid
from flq.wire.fleet import HostedNode, Lease, NodeSpec, Reply, Wake
from flq.wire.grid import Push
from flq.wire.ids import FENCE_BITS, NodeId, ObjectHash, RunId
from flq.wire.runs import ProcessSpec, Submission
from flq.wire.status import ProcessKind, ResultStatus
from tests.waiting import eventually

SEQUENCES = itertools.count()


def process(kind: ProcessKind = ProcessKind.SUPERNODE, slots: int = 2) -> ProcessSpec:
    return ProcessSpec(
        process_id=str(uuid.uuid4()), kind=kind, host="testhost", pid=os.getpid(), version="0", slots=slots
    )


def submission(name: str | None = None, **changes: object) -> Submission:
    values: dict[str, object] = {
        "app": "test-app",
        "bundle": b"bundle",
        "config": {"rounds": 3},
        "owner": "ada",
        "idempotency_key": uuid.uuid4().hex,
        "seed": 7,
        "name": name,
    }
    return Submission(**{**values, **changes})  # type: ignore[arg-type]


class Doors:
    """Opens doors of the SuperLink, and closes them after the test."""

    def __init__(self, dsn: str, db: Database) -> None:
        self._dsn = dsn
        self._db = db
        self.opened = ExitStack()

    def fleet(self, *names: str) -> tuple[DbFleet, list[HostedNode]]:
        """A process that hosts the named nodes."""
        fleet = DbFleet(self._dsn)
        self.opened.callback(fleet.disconnect)
        return fleet, fleet.connect(process(), [NodeSpec(name=name) for name in names])

    def grid(self, run_id: RunId | None = None) -> tuple[DbGrid, AttemptClaim]:
        """The running ServerApp of a new run, or of the next attempt of a pending one."""
        claim = start_attempt(self._db, run_id)
        grid = DbGrid(self._dsn, run_id=claim.run.run_id, token=claim.token, attempt=claim.attempt)
        self.opened.callback(grid.close)
        grid.begin()
        return grid, claim


def add_nodes(db: Database, *names: str) -> list[NodeId]:
    return [node.node_id for node in nodes.connect(db, process(), [NodeSpec(name=name) for name in names])]


def superexec(db: Database, slots: int = 4) -> ProcessSpec:
    spec = process(ProcessKind.SUPEREXEC, slots)
    processes.register(db, spec)
    return spec


def start_attempt(db: Database, run_id: RunId | None = None) -> AttemptClaim:
    """A run whose attempt is claimed, from submission on; or the next attempt of a pending run."""
    spec = superexec(db)
    if run_id is None:
        run_id = runs.submit(db, submission())
    claims: list[AttemptClaim] = []

    def claimed() -> bool:
        attempts.allocate(db)  # unless a SuperLink does so at this moment
        (row,) = runs.listing(db, run_id=run_id)
        claim = attempts.claim(
            db, run_id=run_id, attempt=row.attempt, process_id=spec.process_id, job_id=str(uuid.uuid4())
        )
        claims.extend([claim] if claim else [])
        return bool(claims)

    eventually(claimed, what="the claim of the attempt")
    return claims[0]


def push(*node_ids: NodeId, sequence: int | None = None, **changes: object) -> Push:
    values: dict[str, object] = {
        "sequence": next(SEQUENCES) if sequence is None else sequence,
        "kind": "train",
        "group": "1",
        "round": 1,
        "ttl": 3600.0,
        "node_ids": node_ids,
        "manifests": (b"message",),
        "objects": frozenset(),
        "content_hash": hashlib.sha256(repr((node_ids, sorted(changes.items(), key=str))).encode()).digest(),
    }
    return Push(**{**values, **changes})  # type: ignore[arg-type]


def token() -> int:
    return secrets.randbits(FENCE_BITS)


def claim(fleet: DbFleet, hosted: list[HostedNode], per_node: int = 10, total: int = 1000) -> list[Lease]:
    claimed = fleet.claim([node.node_id for node in hosted], per_node=per_node, total=total, token=token())
    assert not claimed.superseded
    return list(claimed.leases)


def poll(fleet: DbFleet) -> None:
    """Wait in vain, as a SuperNode does every few seconds: its next claim looks in full."""
    eventually(lambda: fleet.wait(0) == Wake(), what="a wait that nothing ends")


def reply(lease: Lease, manifest: bytes = b"reply", **changes: object) -> Reply:
    now = datetime.now(UTC)
    values: dict[str, object] = {
        "key": lease.key, "status": ResultStatus.OK, "manifest": manifest, "started_at": now, "ended_at": now,
    }  # fmt: skip
    return Reply(**{**values, **changes})  # type: ignore[arg-type]


def object_of(data: bytes) -> ObjectHash:
    return ObjectHash(hashlib.sha256(data).digest())
