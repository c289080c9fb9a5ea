"""Open tasks: claimed, renewed, given back, ended without a reply."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple

from flq.link.arrays import Bigints, bigints
from flq.link.cursors import Cursors
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
_NODE_AND_TASK: Final = itemgetter(0, 2)
_DEALT: Final = itemgetter(0, 1, 2, 6, 7)
_KEY_COLUMNS: Final = ("node_ids", "run_ids", "task_ids", "batch_ids", "tokens")


class Sent(NamedTuple):
    """What a process has read of a batch, and what never changes of it.

    `manifest` is its message if all nodes get the same.
    """

    branch: int
    created_at: float
    kind: str
    group: str
    manifest: bytes | None


KEPT_BATCHES = 64
"""So many batches are kept at most: those whose tasks are just being claimed."""


class Batches:
    """The batches that a process has read, the oldest dropped: one read for all nodes and tasks."""

    def __init__(self, limit_bytes: int = 64 << 20) -> None:
        self._limit = limit_bytes
        self._bytes = 0
        self._known: OrderedDict[BatchId, Sent] = OrderedDict()

    def ids(self) -> list[BatchId]:
        """Those that a claim need not read again."""
        return list(self._known)

    def of(self, taken: Sequence[Row], read: Mapping[BatchId, Sent]) -> dict[BatchId, Sent]:
        """The batches of claimed tasks: those that were just read, and are kept from now on, and those known before."""
        found = {batch: read[batch] if batch in read else self._known[batch] for batch in {row[3] for row in taken}}
        for batch_id in sorted(read):
            self._keep(batch_id, read[batch_id])
        return found

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
    known: Batches,
) -> Claimed:
    """Lease open tasks for the nodes of `epochs`, where `cursors` says that there may be some. See `Fleet.claim`.

    `known` are the batches that this process has read; what a claim reads of others goes there.
    """
    look = cursors.look(epochs.keys(), token)
    values = {
        **look_columns(look, epochs),
        "per_node": per_node,
        "total": total,
        "token": token,
        "process_id": process_id,
        "lease": LEASE_SECONDS,
        "max_attempts": MAX_ATTEMPTS,
        "known_batches": bigints(known.ids()),
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
            sent = known.of(taken, {row[3]: Sent(row[4], row[5], *row[8:]) for row in rows if row[0] is None})
            own = _own_manifests(connection, [row for row in taken if sent[row[3]].manifest is None])
    except Exception:
        cursors.failed(look)
        raise
    told = [row for row in rows if row[2] is None and row[0] is not None]
    cursors.found((row[0], row[1]) for row in told if row[1] is not None)
    cursors.brought(map(_DEALT, taken))
    superseded |= {NodeId(row[0]) for row in told if row[1] is None}
    taken.sort(key=_NODE_AND_TASK)
    return Claimed(tuple(_lease(row, token, sent[row[3]], own) for row in taken), superseded)


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
    values = zip(*keys, strict=True) if keys else ((),) * len(TaskKey._fields)
    return dict(zip(_KEY_COLUMNS, map(bigints, values), strict=True))


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


def _own_manifests(tx: Tx, rows: Sequence[Row]) -> dict[int, bytes]:
    if not rows:
        return {}
    values = {"batch_ids": bigints([row[3] for row in rows]), "task_ids": bigints([row[2] for row in rows])}
    with tx.cursor(binary=True) as cursor:
        return dict(cursor.execute(SQL["own_manifests"], values).fetchall())


def _lease(row: Row, token: int, sent: Sent, own: Mapping[int, bytes]) -> Lease:
    node_id, run_id, task_id, batch_id, attempt, deadline, *_ = row
    branch, created_at, kind, group, manifest = sent
    return Lease(
        TaskKey(node_id, run_id, task_id, batch_id, token),
        attempt,
        branch,
        kind,
        group,
        created_at,
        deadline,
        own[task_id] if manifest is None else manifest,
    )
