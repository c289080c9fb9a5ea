"""Open tasks: claimed, renewed, given back, ended without a reply."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

from flq.link.arrays import Bigints, bigints
from flq.link.cursors import Cursors, Dealt
from flq.link.cursors import columns as look_columns
from flq.link.database import Database, Tx
from flq.link.sql import load
from flq.wire.fleet import LEASE_SECONDS, Claimed, Lease, Renewed, TaskKey
from flq.wire.ids import BatchId, NodeId, RunId, TaskId
from flq.wire.status import ResultStatus

SQL: Final = load("tasks")

MAX_ATTEMPTS = 10
"""A task that has been claimed so often without a result is ended as `error`."""

SWEEP_ROWS = 1000
"""How many tasks one sweep ends at most."""

LOOK_ROWS = 50_000
"""How many open tasks one sweep for exhausted ones looks at: some 20 ms of work."""

MESSAGE_UNAVAILABLE = 3
CLIENT_APP_CRASHED = 8

Row = tuple[Any, ...]


class Sent(NamedTuple):
    """What a process has read of a batch: its branch, and its message if all nodes get the same."""

    branch: int
    manifest: bytes | None


KEPT_BATCHES = 64
"""So many broadcasts are kept at most: those whose tasks are just being claimed."""


class Manifests:
    """The broadcast messages that a process has read, by batch, the oldest dropped: one read for all nodes."""

    def __init__(self, limit_bytes: int = 64 << 20) -> None:
        self._limit = limit_bytes
        self._bytes = 0
        self._known: OrderedDict[BatchId, Sent] = OrderedDict()

    def of(self, tx: Tx, rows: Sequence[Row]) -> dict[int, tuple[int, bytes]]:
        """The branch and the manifest of each claimed task, by task id."""
        batches = {BatchId(row[3]) for row in rows}
        unknown = sorted(batches - self._known.keys())
        found: dict[BatchId, Sent] = {batch: self._known[batch] for batch in batches & self._known.keys()}
        if unknown:
            with tx.cursor(binary=True) as cursor:
                for batch_id, branch, manifest in cursor.execute(SQL["broadcast_manifests"], {"batch_ids": unknown}):
                    found[batch_id] = Sent(branch, None if manifest is None else bytes(manifest))
            for batch_id in unknown:
                self._keep(batch_id, found[batch_id])
        own = self._own(tx, [row for row in rows if found[row[3]].manifest is None])
        messages = {}
        for row in rows:
            branch, manifest = found[row[3]]
            messages[row[2]] = branch, own[row[2]] if manifest is None else manifest
        return messages

    def _own(self, tx: Tx, rows: Sequence[Row]) -> dict[int, bytes]:
        if not rows:
            return {}
        values = {"batch_ids": bigints([row[3] for row in rows]), "task_ids": bigints([row[2] for row in rows])}
        with tx.cursor(binary=True) as cursor:
            found = cursor.execute(SQL["own_manifests"], values).fetchall()
        return {task_id: bytes(manifest) for task_id, manifest in found}

    def _keep(self, batch_id: BatchId, sent: Sent) -> None:
        self._known[batch_id] = sent
        self._bytes += len(sent.manifest or b"")
        while len(self._known) > 1 and (self._bytes > self._limit or len(self._known) > KEPT_BATCHES):
            _, dropped = self._known.popitem(last=False)
            self._bytes -= len(dropped.manifest or b"")


def claim(
    db: Database,
    *,
    process_id: str,
    epochs: Mapping[NodeId, int],
    cursors: Cursors,
    per_node: int,
    total: int,
    token: int,
    manifests: Manifests,
) -> Claimed:
    """Lease open tasks for the nodes of `epochs`, where `cursors` says that there may be some. See `Fleet.claim`."""
    look = cursors.look(epochs.keys(), token)
    values = {
        **look_columns(look, epochs),
        "per_node": per_node,
        "total": total,
        "token": token,
        "process_id": process_id,
        "lease": LEASE_SECONDS,
        "max_attempts": MAX_ATTEMPTS,
    }
    try:
        with db.connection() as connection:
            superseded: frozenset[NodeId] = frozenset()
            with connection.cursor(binary=True) as cursor:
                rows = cursor.execute(SQL["claim_again"], values).fetchall() if look.again else []
                if rows:  # else the claim itself says so
                    superseded = _superseded(connection, epochs)
                else:
                    rows = cursor.execute(SQL["claim"], values, prepare=True).fetchall()
            taken = [row for row in rows if row[2] is not None]
            messages = manifests.of(connection, taken) if taken else {}
    except Exception:
        cursors.failed(look)
        raise
    cursors.found((row[0], row[1]) for row in rows if row[1] is not None and row[2] is None)
    cursors.brought(Dealt(row[0], row[1], row[2], row[9], row[10]) for row in taken)
    superseded |= {NodeId(row[0]) for row in rows if row[1] is None}
    leases = sorted(
        (_lease(row, token, *messages[row[2]]) for row in taken), key=lambda x: (x.key.node_id, x.key.task_id)
    )
    return Claimed(tuple(leases), superseded)


def renew(db: Database, keys: Sequence[TaskKey], epochs: Mapping[NodeId, int]) -> Renewed:
    """Prolong leases; says which tasks are lost, and which nodes of theirs another process hosts now."""
    with db.connection() as connection:
        rows = connection.execute(SQL["renew"], {**columns(keys), "lease": LEASE_SECONDS}).fetchall()
        lost = frozenset(key.task_id for key in keys) - {TaskId(row[0]) for row in rows}
        superseded = _superseded(connection, epochs) if lost else frozenset()
    return Renewed(lost, superseded)


def release(db: Database, keys: Sequence[TaskKey]) -> None:
    """Give claimed tasks back, to be claimed again at once."""
    with db.connection() as connection:
        connection.execute(SQL["release"], columns(keys))


def cancel_run(tx: Tx, run_id: RunId, *, reason: str) -> int:
    """End the open tasks of a run as cancelled; returns how many."""
    rows = tx.execute(SQL["open_tasks_of_run"], {"run_id": run_id}).fetchall()
    return _end(tx, rows, ResultStatus.CANCELLED, MESSAGE_UNAVAILABLE, reason)


def cancel_batches(tx: Tx, run_id: RunId, batches: Collection[BatchId], *, reason: str) -> int:
    """End the open tasks of some batches of a run as cancelled; returns how many."""
    rows = tx.execute(SQL["open_tasks_of_batches"], {"run_id": run_id, "batch_ids": list(batches)}).fetchall()
    return _end(tx, rows, ResultStatus.CANCELLED, MESSAGE_UNAVAILABLE, reason)


def expire_overdue(tx: Tx) -> int:
    """End the tasks whose deadline has passed; returns how many."""
    rows = tx.execute(SQL["overdue_tasks"], {"limit": SWEEP_ROWS}).fetchall()
    return _end(tx, rows, ResultStatus.EXPIRED, MESSAGE_UNAVAILABLE, "its deadline passed")


class ExhaustedSweep:
    """Ends the tasks that have been tried too often. A call looks at some of the open tasks, the next one goes on."""

    def __init__(self, look: int = LOOK_ROWS) -> None:
        self._look = look
        self._after: Row = (0, 0, 0)

    def __call__(self, tx: Tx) -> int:
        """Returns how many were ended."""
        after_node, after_run, after_task = self._after
        values = {
            "after_node": after_node,
            "after_run": after_run,
            "after_task": after_task,
            "look": self._look,
            "limit": SWEEP_ROWS,
            "max_attempts": MAX_ATTEMPTS,
        }
        rows = tx.execute(SQL["exhausted_tasks"], values).fetchall()
        exhausted = [tuple(key) for *key, is_exhausted in rows if is_exhausted]
        if len(exhausted) < SWEEP_ROWS:  # else there may be more of them before the last one
            self._after = next((tuple(key) for *key, is_exhausted in rows if not is_exhausted), (0, 0, 0))
        reason = f"attempts_exhausted: {MAX_ATTEMPTS} attempts have ended without a result"
        return _end(tx, exhausted, ResultStatus.ERROR, CLIENT_APP_CRASHED, reason)


def columns(keys: Sequence[TaskKey]) -> dict[str, Bigints]:
    """Task keys as the arrays that the statements take."""
    return {
        "node_ids": bigints([key.node_id for key in keys]),
        "run_ids": bigints([key.run_id for key in keys]),
        "task_ids": bigints([key.task_id for key in keys]),
        "batch_ids": bigints([key.batch_id for key in keys]),
        "tokens": bigints([key.token for key in keys]),
    }


def _end(tx: Tx, rows: Sequence[Row], status: ResultStatus, error_code: int, error_text: str) -> int:
    if not rows:
        return 0
    node_ids, run_ids, task_ids = (bigints(column) for column in zip(*rows, strict=True))
    values = {
        "node_ids": node_ids,
        "run_ids": run_ids,
        "task_ids": task_ids,
        "status": status,
        "error_code": error_code,
        "error_text": error_text,
    }
    row = tx.execute(SQL["end_tasks"], values).fetchone()
    return int(row[0]) if row else 0


def _superseded(tx: Tx, epochs: Mapping[NodeId, int]) -> frozenset[NodeId]:
    values = {"node_ids": bigints(list(epochs)), "epochs": bigints(list(epochs.values()))}
    return frozenset(NodeId(row[0]) for row in tx.execute(SQL["superseded_nodes"], values))


def _lease(row: Row, token: int, branch: int, manifest: bytes) -> Lease:
    node_id, run_id, task_id, batch_id, attempt, kind, group, created_at, deadline, *_ = row
    key = TaskKey(
        node_id=NodeId(node_id), run_id=RunId(run_id), task_id=TaskId(task_id), batch_id=BatchId(batch_id), token=token
    )
    return Lease(
        key=key,
        attempt=attempt,
        branch=branch,
        kind=kind,
        group=group,
        created_at=created_at,
        deadline=deadline,
        manifest=manifest,
    )
