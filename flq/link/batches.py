"""Batches: what a ServerApp pushes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from flq.errors import AttemptFenced, NodeUnknown
from flq.link import events, objects, quotas, runs, steps
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
    limited: bool | None


def push(db: Database, *, run_id: RunId, token: int, push: Push) -> Pushed:
    """Create the tasks of a batch, all or none, with its step; a repeated push returns what exists.

    A push whose sequence exists with another content, or as a checkpoint, diverges from what an earlier attempt did: it
    opens a new branch, the open tasks of the old one are cancelled, and the history says so with both hashes.

    Raises `AttemptFenced`, `NodeUnknown`, `ObjectsMissing` or `QuotaExceeded`.
    """
    pushed = _pushed(_push_once(db, run_id, token, push))
    if pushed is None:
        pushed = _repeat(db, run_id, token, push) or _diverge(db, run_id, token, push)
    return pushed


def reissue(
    db: Database, *, run_id: RunId, token: int, batch_id: BatchId, task_ids: Sequence[TaskId], ttl: float
) -> int:
    """Open cancelled and expired tasks of a batch again; returns how many. See `Grid.reissue`.

    Raises `AttemptFenced`.
    """
    values = {"run_id": run_id, "token": token, "batch_id": batch_id, "task_ids": bigints(task_ids), "ttl": ttl}
    with db.transaction() as tx:
        held, opened, _ = tx.execute(SQL["reissue"], values).fetchone() or (0, 0, 0)
        if not held:
            raise AttemptFenced
        if opened:
            details = {"batch": batch_id, "tasks": opened}
            events.record(tx, run_id, "issued anew", actor="serverapp", details=details)
    return int(opened)


def _push_once(db: Database, run_id: RunId, token: int, push: Push) -> _Made:
    if not (push.objects or push.delivered.node_lists):
        with db.connection() as connection:  # one statement, unless a quota has to be looked at
            made = _statement(connection, run_id, token, push, checked=False)
        if not made.limited:
            return made
    with db.transaction() as tx:
        steps.keep_lists(tx, run_id, push.delivered)
        objects.hold(tx, push.objects)
        made = _statement(tx, run_id, token, push)
        _check_quotas(tx, run_id, push, made)
    return made


def _statement(tx: Tx, run_id: RunId, token: int, push: Push, *, checked: bool = True) -> _Made:
    """Push; without `checked`, only if the run has no quotas."""
    shared = len(push.manifests) == 1
    values: dict[str, Any] = {
        "run_id": run_id,
        "token": token,
        "checked": checked,
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
        "delivered": steps.column(push.delivered),
    }
    with tx.cursor(binary=True) as cursor:
        row = cursor.execute(SQL["push"], values, prepare=True).fetchone()
    assert row is not None, "the statement always answers"  # noqa: S101
    return _Made(*row[:5])


def _pushed(made: _Made) -> Pushed | None:
    if not made.held:
        raise AttemptFenced
    if made.unknown:
        raise NodeUnknown(f"there are no nodes {', '.join(map(str, sorted(made.unknown)))}")
    if made.batch_id is None:
        return None
    return Pushed(BatchId(made.batch_id), tuple(TaskId(task_id) for task_id in made.task_ids or ()))


def _check_quotas(tx: Tx, run_id: RunId, push: Push, made: _Made) -> None:
    if made.batch_id is not None and made.limited:
        quotas.check(tx, run_id, tasks=len(push.node_ids), objects=len(push.objects))


def _repeat(db: Database, run_id: RunId, token: int, push: Push) -> Pushed | None:
    with db.connection() as connection, connection.cursor(binary=True) as cursor:
        row = cursor.execute(
            SQL["pushed_before"], {"run_id": run_id, "token": token, "sequence": push.sequence}
        ).fetchone()
    if row is None:
        raise AttemptFenced
    batch_id, content_hash, task_ids = row
    if batch_id is None or bytes(content_hash) != push.content_hash:
        return None
    return Pushed(BatchId(batch_id), tuple(TaskId(task_id) for task_id in task_ids or ()), replayed=True)


def _diverge(db: Database, run_id: RunId, token: int, push: Push) -> Pushed:
    with db.transaction() as tx:
        if runs.lock(tx, run_id).token != token:
            raise AttemptFenced
        objects.hold(tx, push.objects)
        steps.keep_lists(tx, run_id, push.delivered)
        row = tx.execute(SQL["pushed_before"], {"run_id": run_id, "token": token, "sequence": push.sequence}).fetchone()
        before = "checkpoint" if row is None or row[0] is None else bytes(row[1]).hex()
        steps.diverge(tx, run_id, token, sequence=push.sequence, before=before, now=push.content_hash.hex())
        made = _statement(tx, run_id, token, push)
        _check_quotas(tx, run_id, push, made)
        pushed = _pushed(made)
    assert pushed is not None, "a new branch has no such step yet"  # noqa: S101
    return pushed
