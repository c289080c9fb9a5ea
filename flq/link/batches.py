"""Batches: what a ServerApp pushes."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from flq.errors import AttemptFenced, NodeUnknown
from flq.link import events, objects, quotas, runs, tasks
from flq.link.arrays import bigints, byteas
from flq.link.database import Database, Tx
from flq.link.sql import load
from flq.wire.grid import Push, Pushed
from flq.wire.ids import BatchId, RunId, TaskId

SQL: Final = load("batches")


class _Made(NamedTuple):
    held: int
    unknown: list[int] | None
    batch_id: int | None
    task_ids: list[int] | None


def push(db: Database, *, run_id: RunId, token: int, push: Push) -> Pushed:
    """Create the tasks of a batch, all or none; a repeated push returns what exists.

    A push whose sequence exists with another content diverges from what an earlier attempt did: it opens a new branch,
    the open tasks of the old one are cancelled, and the history says so with both hashes.

    Raises `AttemptFenced`, `NodeUnknown`, `ObjectsMissing` or `QuotaExceeded`.
    """
    pushed = _push_once(db, run_id, token, push)
    if pushed is None:
        pushed = _repeat(db, run_id, token, push) or _diverge(db, run_id, token, push)
    return pushed


def _push_once(db: Database, run_id: RunId, token: int, push: Push) -> Pushed | None:
    with db.transaction() as tx:
        objects.hold(tx, push.objects)
        return _within_quotas(tx, run_id, push, _pushed(_statement(tx, run_id, token, push)))


def _statement(tx: Tx, run_id: RunId, token: int, push: Push) -> _Made:
    shared = len(push.manifests) == 1
    values: dict[str, Any] = {
        "run_id": run_id,
        "token": token,
        "node_ids": bigints(push.node_ids),
        "sequence": push.sequence,
        "kind": push.kind,
        "group_id": push.group,
        "round": push.round,
        "ttl": push.ttl,
        "content_hash": push.content_hash,
        "manifest": push.manifests[0] if shared else None,
        "manifests": byteas([] if shared else push.manifests),
        "objects": byteas(sorted(push.objects)),
    }
    with tx.cursor(binary=True) as cursor:
        row = cursor.execute(SQL["push"], values, prepare=True).fetchone()
    assert row is not None, "the statement always answers"  # noqa: S101
    return _Made(*row[:4])


def _pushed(made: _Made) -> Pushed | None:
    if not made.held:
        raise AttemptFenced
    if made.unknown:
        raise NodeUnknown(f"there are no nodes {', '.join(map(str, sorted(made.unknown)))}")
    if made.batch_id is None:
        return None
    return Pushed(BatchId(made.batch_id), tuple(TaskId(task_id) for task_id in made.task_ids or ()))


def _within_quotas(tx: Tx, run_id: RunId, push: Push, pushed: Pushed | None) -> Pushed | None:
    if pushed is not None:
        quotas.check(tx, run_id, tasks=len(push.node_ids), objects=len(push.objects))
    return pushed


def _repeat(db: Database, run_id: RunId, token: int, push: Push) -> Pushed | None:
    with db.connection() as connection, connection.cursor(binary=True) as cursor:
        row = cursor.execute(
            SQL["pushed_before"], {"run_id": run_id, "token": token, "sequence": push.sequence}
        ).fetchone()
    if row is None:
        raise AttemptFenced
    batch_id, content_hash, task_ids = row
    if bytes(content_hash) != push.content_hash:
        return None
    return Pushed(BatchId(batch_id), tuple(TaskId(task_id) for task_id in task_ids or ()), replayed=True)


def _diverge(db: Database, run_id: RunId, token: int, push: Push) -> Pushed:
    with db.transaction() as tx:
        if runs.lock(tx, run_id).token != token:
            raise AttemptFenced
        objects.hold(tx, push.objects)
        before = tx.execute(
            SQL["pushed_before"], {"run_id": run_id, "token": token, "sequence": push.sequence}
        ).fetchone()
        rows = tx.execute(SQL["batches_from"], {"run_id": run_id, "sequence": push.sequence}).fetchall()
        tasks.cancel_batches(tx, run_id, [BatchId(row[0]) for row in rows], reason="a later attempt went another way")
        tx.execute(SQL["open_branch"], {"run_id": run_id, "token": token})
        details = {"sequence": push.sequence, "now": push.content_hash.hex()}
        if before is not None:
            details["before"] = bytes(before[1]).hex()
        events.record(tx, run_id, "diverged", actor="serverapp", details=details)
        pushed = _within_quotas(tx, run_id, push, _pushed(_statement(tx, run_id, token, push)))
    assert pushed is not None, "a new branch has no sequences yet"  # noqa: S101
    return pushed
