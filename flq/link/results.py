"""Results: submitted at most once, and read by the ServerApp that waits for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import psycopg

from flq.errors import LinkError
from flq.link import metrics, objects, states
from flq.link.arrays import bigints, byteas, doubles, smallints, texts
from flq.link.database import Database, Tx
from flq.link.sql import load
from flq.link.tasks import columns
from flq.wire.fleet import Reply
from flq.wire.grid import Result, ResultKey, ResultPage
from flq.wire.ids import BatchId, NodeId, TaskId
from flq.wire.runs import FeedCursor
from flq.wire.status import ResultStatus, Verdict

SQL: Final = load("results")

_STATUS: Final = {status.value: status for status in ResultStatus}  # an enum's constructor is slower for each row


def submit(db: Database, replies: Sequence[Reply]) -> dict[TaskId, Verdict]:
    """Finish tasks in one statement. A flush that PostgreSQL refuses is split until the bad reply stands alone.

    Raises `ObjectsMissing`, in which case nothing changed, or `LinkError` for the reply that cannot be stored.
    """
    if len({reply.key.task_id for reply in replies}) < len(replies):  # each is to be judged after the one before it
        return _by_halves(db, replies)
    try:
        accepted = _flush(db, replies)
    except (psycopg.DataError, psycopg.IntegrityError) as exc:
        if len(replies) == 1:
            raise LinkError(f"the reply of task {replies[0].key.task_id} cannot be stored: {_said(exc)}") from exc
        return _by_halves(db, replies)
    verdicts = dict.fromkeys(accepted, Verdict.ACCEPTED)
    if len(accepted) < len(replies):
        others = [reply for reply in replies if reply.key.task_id not in accepted]
        verdicts |= _read_again(db, others)
    return verdicts


def arrived(db: Database, batches: Sequence[BatchId], cursor: FeedCursor) -> ResultPage:
    """The keys of results that have come in since `cursor`, each exactly once. See `FeedCursor`."""
    values = {"batch_ids": bigints(batches), "xmin": cursor.xmin}
    with db.connection() as connection, connection.cursor(binary=True) as reading:
        rows = reading.execute(SQL["arrived"], values, prepare=True).fetchall()
    xmin = int(rows[0][0])
    found = [row for row in rows if row[1] is not None]
    keys = tuple(
        ResultKey(BatchId(batch_id), TaskId(task_id), NodeId(node_id), _STATUS[status])
        for _, batch_id, task_id, node_id, status, xid in found
        if (xid, task_id) not in cursor.seen
    )
    seen = frozenset((int(row[5]), int(row[2])) for row in found if row[5] >= xmin)
    return ResultPage(keys, FeedCursor(xmin, seen))


def read(db: Database, keys: Sequence[ResultKey]) -> list[Result]:
    """The results of `keys`, in their order."""
    values = {"batch_ids": bigints([key.batch_id for key in keys]), "task_ids": bigints([key.task_id for key in keys])}
    with db.connection() as connection, connection.cursor(binary=True) as cursor:
        rows = cursor.execute(SQL["replies"], values, prepare=True).fetchall()
    found = {row[1]: _result(row) for row in rows}
    return [found[key.task_id] for key in keys if key.task_id in found]


def _by_halves(db: Database, replies: Sequence[Reply]) -> dict[TaskId, Verdict]:
    middle = len(replies) // 2
    return submit(db, replies[:middle]) | submit(db, replies[middle:])


def _flush(db: Database, replies: Sequence[Reply]) -> set[TaskId]:
    named = frozenset[Any]().union(*(reply.objects for reply in replies))
    left = [reply.key for reply in replies if reply.state]
    if not named and not left:
        with db.connection() as connection:
            return _statement(connection, replies)
    with db.transaction() as tx:
        objects.hold(tx, named)
        accepted = _statement(tx, replies)
        states.record(tx, [key for key in left if key.task_id in accepted])
        return accepted


def _statement(tx: Tx, replies: Sequence[Reply]) -> set[TaskId]:
    with tx.cursor(binary=True) as cursor:
        rows = cursor.execute(SQL["submit"], _arrays(replies), prepare=True).fetchall()
    return {row[0] for row in rows}


def _arrays(replies: Sequence[Reply]) -> dict[str, bytes]:
    named = [(reply.key.task_id, name) for reply in replies if reply.objects for name in sorted(reply.objects)]
    return {
        **columns([reply.key for reply in replies]),
        "statuses": texts([reply.status for reply in replies]),
        "error_codes": smallints([reply.error_code for reply in replies]),
        "error_texts": texts([_text(reply.error_text) for reply in replies]),
        "manifests": byteas([reply.manifest if reply.status is ResultStatus.OK else None for reply in replies]),
        "metrics": texts([json.dumps(metrics.finite(reply.metrics)) if reply.metrics else None for reply in replies]),
        "payload_bytes": bigints([reply.payload_bytes for reply in replies]),
        "started": doubles([reply.started_at.timestamp() for reply in replies]),
        "ended": doubles([reply.ended_at.timestamp() for reply in replies]),
        "object_tasks": bigints([task_id for task_id, _ in named]),
        "objects": byteas([name for _, name in named]),
    }


def _read_again(db: Database, replies: Sequence[Reply]) -> dict[TaskId, Verdict]:
    """Tell duplicates from fenced ones, in a new snapshot: the first submit of a retry may have committed meanwhile."""
    with db.connection() as connection:
        rows = connection.execute(SQL["stored_before"], columns([reply.key for reply in replies])).fetchall()
        stored = {TaskId(task_id) for (task_id,) in rows}
        late = [reply.key for reply in replies if reply.key.task_id not in stored]
        if late:
            connection.execute(SQL["note_late"], columns(late))
    return {
        reply.key.task_id: Verdict.DUPLICATE if reply.key.task_id in stored else Verdict.FENCED for reply in replies
    }


def _said(exc: psycopg.Error) -> str:
    return exc.diag.message_primary or str(exc)


def _text(value: str | None) -> str | None:
    """Text that PostgreSQL takes: it has no NUL."""
    return None if value is None else value.replace("\0", "\N{SYMBOL FOR NULL}")


def _result(row: tuple[Any, ...]) -> Result:
    batch_id, task_id, node_id, status, error_code, error_text, manifest, created_at = row
    return Result(
        batch_id=BatchId(batch_id),
        task_id=TaskId(task_id),
        node_id=NodeId(node_id),
        status=_STATUS[status],
        error_code=error_code,
        error_text=error_text,
        manifest=b"" if manifest is None else bytes(manifest),
        created_at=created_at,
    )
