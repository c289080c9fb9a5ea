"""`flq prune`: what finished runs leave behind goes, in bounded transactions; partitions go as a whole.

Three depths: the payloads of messages, replies and checkpoints; with them the results and the output; with `history`
everything. Otherwise a run's row, rounds, metrics, events and artifacts stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from psycopg import sql

from flq.errors import IllegalTransition
from flq.link import collection
from flq.link.database import Database, Tx, is_pooled, translated
from flq.link.sql import load
from flq.wire.ids import BatchId, RunId

SQL: Final = load("retention")

CHUNK_TASKS = 5000
CHUNK_LINES = 20_000
"""How much one transaction deletes, about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What is to go of which runs: those named, or those that have been finished for `age` seconds.

    With an age, output of days that have passed goes of every run.
    """

    runs: tuple[RunId, ...] = ()
    age: float | None = None
    payloads: bool = False
    history: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Freed:
    """What was or would be freed. `bytes` are those of `objects` that nothing else refers to."""

    runs: int
    objects: int
    bytes: int
    checkpoints: int
    results: int
    log_lines: int
    metrics: int
    events: int
    artifacts: int
    partitions: tuple[str, ...]
    partition_bytes: int


@dataclass(frozen=True, slots=True)
class _Partition:
    name: str
    parent: str
    detaching: bool
    size: int


def survey(db: Database, scope: Scope) -> Freed:
    """What `prune` would free. Raises `IllegalTransition` if a named run is not finished."""
    with db.transaction() as tx:
        tx.execute(SQL["prune_timeouts"])
        return _survey(tx, scope, _chosen(tx, scope))


def prune(db: Database, scope: Scope) -> Freed:
    """Free it; returns what was freed. A call that is broken off can be repeated.

    Raises `IllegalTransition` if a named run is not finished.
    """
    with db.transaction() as tx:
        tx.execute(SQL["prune_timeouts"])
        chosen = _chosen(tx, scope)
        freed = _survey(tx, scope, chosen)
    chosen = [run_id for run_id in chosen if _release(db, scope, run_id)]
    for run_id in chosen:
        for batches in _chunks(db, run_id):
            _delete(db, ["empty_messages", "empty_replies" if scope.payloads else "delete_attempts"], batches)
    if not scope.payloads:
        _drop_partitions(db, scope, chosen)
        for run_id in chosen:
            for batches in _chunks(db, run_id):
                _delete(db, ["delete_results"], batches)
            _delete_logs(db, run_id)
    if scope.history:
        for run_id in chosen:
            _forget(db, run_id)
    collection.collect(db)
    return freed


def _chosen(tx: Tx, scope: Scope) -> list[RunId]:
    named = list(scope.runs)
    values: dict[str, object] = {"run_ids": named, "history": scope.history}
    unfinished = [name for (name,) in tx.execute(SQL["unfinished"], values).fetchall()]
    if unfinished:
        raise IllegalTransition(f"not finished: {', '.join(unfinished)}", hint="`flq stop` ends a run")
    if scope.age is None:
        return named
    values = {"age": scope.age, "history": scope.history, "payloads": scope.payloads}
    return named + [run_id for (run_id,) in tx.execute(SQL["finished_before"], values) if run_id not in named]


def _survey(tx: Tx, scope: Scope, chosen: Sequence[RunId]) -> Freed:
    values = {"run_ids": list(chosen), "history": scope.history, "age": scope.age}
    objects, size, checkpoints = _row(tx, "survey_payloads", values)
    results, lines = (0, 0) if scope.payloads else _row(tx, "survey_tasks", values)
    metrics, events, artifacts = _row(tx, "survey_history", values) if scope.history else (0, 0, 0)
    partitions = [] if scope.payloads else _old_partitions(tx, scope, chosen)
    return Freed(
        runs=len(chosen),
        objects=objects,
        bytes=size,
        checkpoints=checkpoints,
        results=results,
        log_lines=lines,
        metrics=metrics,
        events=events,
        artifacts=artifacts,
        partitions=tuple(partition.name for partition in partitions),
        partition_bytes=sum(partition.size for partition in partitions),
    )


def _row(tx: Tx, name: str, values: dict[str, object]) -> tuple[int, ...]:
    row = tx.execute(SQL[name], values).fetchone()
    assert row is not None, "a survey always answers"  # noqa: S101
    return tuple(row)


def _release(db: Database, scope: Scope, run_id: RunId) -> bool:
    """Take away what a run refers to; false if it is not finished, as it went on meanwhile."""
    with db.transaction() as tx:
        tx.execute(SQL["prune_timeouts"])
        if tx.execute(SQL["mark_pruned"], {"run_id": run_id}).fetchone() is None:
            return False
        tx.execute(SQL["release_run"], {"run_id": run_id, "history": scope.history})
    return True


def _chunks(db: Database, run_id: RunId) -> Iterator[list[BatchId]]:
    """The batches of a run, so many at once that they have some thousands of tasks."""
    with db.connection() as connection:
        rows = connection.execute(SQL["batches_of_run"], {"run_id": run_id}).fetchall()
    chunk: list[BatchId] = []
    tasks = 0
    for batch_id, count in rows:
        chunk.append(BatchId(batch_id))
        tasks += count
        if tasks >= CHUNK_TASKS:
            yield chunk
            chunk, tasks = [], 0
    if chunk:
        yield chunk


def _delete(db: Database, names: Sequence[str], batches: Sequence[BatchId]) -> None:
    with db.transaction() as tx:
        tx.execute(SQL["prune_timeouts"])
        for name in names:
            tx.execute(SQL[name], {"batch_ids": list(batches)})


def _delete_logs(db: Database, run_id: RunId) -> None:
    while True:
        with db.transaction() as tx:
            tx.execute(SQL["prune_timeouts"])
            gone = tx.execute(SQL["delete_logs"], {"run_id": run_id, "limit": CHUNK_LINES}).rowcount
        if gone < CHUNK_LINES:
            return


def _forget(db: Database, run_id: RunId) -> None:
    with db.transaction() as tx:
        tx.execute(SQL["prune_timeouts"])
        tx.execute(SQL["delete_history"], {"run_id": run_id})
        bundles = [bytes(name) for (name,) in tx.execute(SQL["delete_run"], {"run_id": run_id}).fetchall()]
        tx.execute(SQL["delete_bundle"], {"bundles": bundles})


def _old_partitions(tx: Tx, scope: Scope, chosen: Sequence[RunId]) -> list[_Partition]:
    rows = tx.execute(SQL["old_partitions"], {"age": scope.age, "run_ids": list(chosen)}).fetchall()
    return [_Partition(*row) for row in rows]


def _drop_partitions(db: Database, scope: Scope, chosen: Sequence[RunId]) -> None:
    """Detach and drop, without a lock that readers or writers of the other partitions would meet."""
    connection = db.open_connection()
    try:
        with translated(connection):
            for partition in _old_partitions(connection, scope, chosen):
                _detach(connection, partition)
            for (name,) in connection.execute(SQL["detached_partitions"]).fetchall():
                connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier("flq_state", name)))
    finally:
        connection.close()


def _detach(connection: Tx, partition: _Partition) -> None:
    # CONCURRENTLY cannot be in a transaction, and through a transaction pooler everything is in one
    how = sql.SQL("FINALIZE" if partition.detaching else "" if is_pooled(connection) else "CONCURRENTLY")
    statement = sql.SQL("ALTER TABLE {} DETACH PARTITION {} {}")
    parent, name = sql.Identifier("flq_state", partition.parent), sql.Identifier("flq_state", partition.name)
    connection.execute(statement.format(parent, name, how))
