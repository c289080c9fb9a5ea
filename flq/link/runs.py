"""Runs: submission, and every change of a run's state.

Lock order: run, then attempt, then batch, task and result. `_locked` takes the run FOR NO KEY UPDATE first.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import timedelta
from typing import Any, Final, NamedTuple

from psycopg.types.json import Jsonb

from flq.errors import IllegalTransition, RunUnknown, UsageError
from flq.link import bundles, events, metrics, names, notify, tasks
from flq.link.database import Database, Tx
from flq.link.sql import load
from flq.wire.ids import ObjectHash, RunId
from flq.wire.runs import Cause, RoundRow, RunInfo, RunRow, Submission
from flq.wire.status import Outcome, RunStatus

SQL: Final = load("runs")

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
MAX_BIGINT = 2**63 - 1


class Locked(NamedTuple):
    """A run whose row is locked until the transaction ends."""

    status: RunStatus
    attempt: int
    token: int
    stop_requested: bool


def submit(db: Database, submission: Submission) -> RunId:
    """Record a run with its bundle in one transaction; a repeated submission finds the run that exists.

    Raises `UsageError` if the name that was asked for is taken or no name.
    """
    check_name(submission.name)
    with db.transaction() as tx:
        bundle_hash = bundles.store(tx, submission.bundle)
        run_id, fresh = _insert(tx, submission, bundle_hash)
        if fresh:
            events.record(tx, run_id, "submitted", actor=submission.owner)
            notify.tell(tx, notify.RUNS, str(run_id))
    return run_id


def resolve(db: Database, run: str) -> RunId:
    """A run's id by its name or its id in digits. Raises `RunUnknown` with the nearest name."""
    number = int(run) if run.isdecimal() and int(run) <= MAX_BIGINT else None
    with db.connection() as connection:
        row = connection.execute(SQL["resolve_run"], {"run": run, "run_id": number}).fetchone()
        if row is not None:
            return RunId(row[0])
        known = [name for (name,) in connection.execute(SQL["similar_runs"]).fetchall()]
    near = difflib.get_close_matches(run, known, n=1)
    raise RunUnknown(f"there is no run {run!r}", hint=f"did you mean {near[0]}?" if near else "`flq ls` lists the runs")


def lock(tx: Tx, run_id: RunId) -> Locked:
    """Lock a run against every other change of its state. Raises `RunUnknown`."""
    row = tx.execute(SQL["lock_run"], {"run_id": run_id}).fetchone()
    if row is None:
        raise RunUnknown(f"there is no run {run_id}")
    status, attempt, token, stop_requested = row
    return Locked(RunStatus(status), attempt, token, stop_requested)


def begin(tx: Tx, run_id: RunId, token: int, threads: Mapping[str, str] | None = None) -> bool:
    """Starting → running; false if the token is not the current attempt's. `threads` stand in the history."""
    if tx.execute(SQL["begin_run"], {"run_id": run_id, "token": token}).rowcount == 0:
        return False
    events.record(tx, run_id, "running", actor="serverapp", details={"threads": dict(threads)} if threads else None)
    notify.tell(tx, notify.RUNS, str(run_id))
    return True


def requeue(tx: Tx, run_id: RunId, *, actor: str, reason: str, delay: float = 0.0, excused: bool = False) -> None:
    """Starting | running → pending. Its open tasks stay: the next attempt repeats its pushes and finds them.

    The next attempt begins in `delay` seconds. With `excused` the attempts so far do not count towards their cap.
    """
    values = {"run_id": run_id, "delay": delay, "excused": excused}
    _changed(tx.execute(SQL["requeue_run"], values).rowcount, run_id, RunStatus.PENDING)
    events.record(tx, run_id, "requeued", actor=actor, reason=reason)
    notify.tell(tx, notify.RUNS, str(run_id))


def finish(tx: Tx, run_id: RunId, outcome: Outcome, *, actor: str, reason: str | None) -> None:
    """→ finished. Its open tasks are cancelled."""
    values = {"run_id": run_id, "outcome": outcome, "reason": reason}
    _changed(tx.execute(SQL["finish_run"], values).rowcount, run_id, RunStatus.FINISHED)
    tasks.cancel_run(
        tx, run_id, reason=f"the run has {outcome}" if outcome != Outcome.STOPPED else "the run was stopped"
    )
    events.record(tx, run_id, outcome, actor=actor, reason=reason)
    notify.tell(tx, notify.RUNS, str(run_id))


def resume(tx: Tx, run_id: RunId, *, actor: str, wall_time_limit: float | None = None) -> None:
    """Finished → pending, for a run that has failed or was stopped: it goes on behind its last commit.

    `wall_time_limit` in seconds is its new limit, over all of its attempts; None leaves it as it is. Raises
    `RunUnknown`, or `IllegalTransition` with the way out.
    """
    row = tx.execute(SQL["resumable_run"], {"run_id": run_id}).fetchone()
    if row is None:
        raise RunUnknown(f"there is no run {run_id}")
    name, status, outcome, reason, is_pruned, limit, used = row
    limit = wall_time_limit or limit
    if status != RunStatus.FINISHED:
        raise IllegalTransition(
            f"{name} is {status}: only a run that has failed or was stopped can be resumed",
            hint=f"flq explain {name} says what it waits for",
        )
    if outcome == Outcome.COMPLETED:
        raise IllegalTransition(
            f"{name} has completed: there is nothing to resume",
            hint=f"flq rerun {name} runs it again; flq fork {name} --from-round N goes on from a round",
        )
    if is_pruned:
        raise IllegalTransition(
            f"{name} cannot be resumed: what it would go on from was pruned", hint=f"flq rerun {name} runs it again"
        )
    if limit is not None and limit <= used:
        raise IllegalTransition(
            f"{name} has worked for {used:.0f} s and may work for {limit:g} s",
            hint=f"give it more: flq resume {name} --wall-time-limit S",
        )
    values = {"run_id": run_id, "wall_time_limit": _span(wall_time_limit)}
    _changed(tx.execute(SQL["resume_run"], values).rowcount, run_id, RunStatus.PENDING)
    events.record(tx, run_id, "resumed", actor=actor, reason=f"it had {outcome}: {reason}")
    notify.tell(tx, notify.RUNS, str(run_id))


def request_stop(tx: Tx, run_id: RunId, *, actor: str, reason: str | None) -> None:
    """Ask the SuperExec that holds the run to end it, and cancel its open tasks."""
    tx.execute(SQL["request_stop"], {"run_id": run_id})
    tasks.cancel_run(tx, run_id, reason="the run is being stopped")
    events.record(tx, run_id, "stop requested", actor=actor, reason=reason)
    notify.tell(tx, notify.RUNS, str(run_id))


def info(db: Database, run_id: RunId) -> RunInfo:
    """What a ServerApp or a ClientApp needs to know of its run. Raises `RunUnknown`."""
    with db.connection() as connection:
        return info_in(connection, run_id)


def info_in(tx: Tx, run_id: RunId) -> RunInfo:
    """The same, as a step of a transaction."""
    row = tx.execute(SQL["run_info"], {"run_id": run_id}).fetchone()
    if row is None:
        raise RunUnknown(f"there is no run {run_id}")
    found, name, app, bundle, config, seed, status = row
    return RunInfo(
        run_id=RunId(found),
        name=name,
        app=app,
        bundle=ObjectHash(bytes(bundle)),
        config=config,
        seed=seed,
        status=RunStatus(status),
    )


def ended(db: Database, run_ids: Collection[RunId]) -> frozenset[RunId]:
    """Those of the runs that are finished, asked to stop, or unknown."""
    with db.connection() as connection:
        rows = connection.execute(SQL["ended_runs"], {"run_ids": list(run_ids)}).fetchall()
    return frozenset(RunId(run_id) for (run_id,) in rows)


def plan_rounds(tx: Tx, run_id: RunId, token: int, rounds: int) -> bool:
    """Note how many rounds the run will have; false if the token is not the current attempt's."""
    return tx.execute(SQL["plan_rounds"], {"run_id": run_id, "token": token, "rounds": rounds}).rowcount == 1


def listing(db: Database, *, run_id: RunId | None = None, limit: int = 100) -> list[RunRow]:
    """The newest runs, newest first, or one of them."""
    with db.connection() as connection:
        rows = connection.execute(SQL["list_runs"], {"run_id": run_id, "limit": limit}).fetchall()
    return [_run_row(row) for row in rows]


def rounds(db: Database, run_id: RunId, *, since: int) -> list[RoundRow]:
    """The rounds of a run from `since` on, which is 1 or more."""
    with db.connection() as connection:
        rows = connection.execute(SQL["list_rounds"], {"run_id": run_id, "since": since}).fetchall()
    fields = ("round", "status", "nodes", "tasks", "done", "errors", "duration")
    return [RoundRow(**dict(zip(fields, facts, strict=True)), metrics=metrics.numbers(found)) for *facts, found in rows]


def waiting(db: Database, run_id: RunId) -> list[Cause]:
    """What keeps a run from going on, what weighs most first; nothing if it has finished."""
    with db.connection() as connection:
        rows = connection.execute(SQL["why_waiting"], {"run_id": run_id}).fetchall()
    return [Cause(cause, reason) for cause, reason in rows]


def check_name(name: str | None) -> None:
    """Raise `UsageError` if a name that was asked for is none."""
    if name is not None and not NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be a run's name", hint="1 to 63 lower-case letters, digits and dashes")


def insert_named(
    tx: Tx, name: str | None, key: Mapping[str, str], insert: Callable[[str], tuple[Any, ...] | None]
) -> tuple[RunId, bool]:
    """Make a run by `insert`, under `name` or a memorable one, and say whether it is new.

    `insert` answers None if the name is taken, or if the owner has submitted this key before; then that run is found.
    Raises `UsageError` if `name` is taken.
    """
    tries: Iterator[str] = iter([name]) if name else names.candidates()
    for tried in tries:
        row = insert(tried)
        if row is not None:
            return RunId(row[0]), True
        row = tx.execute(SQL["submitted_run"], key).fetchone()
        if row is not None:
            return RunId(row[0]), False
    raise UsageError(f"the name {name!r} is taken", hint="`flq ls` lists the runs; leave --name out for a new one")


def _insert(tx: Tx, submission: Submission, bundle_hash: ObjectHash) -> tuple[RunId, bool]:
    def insert(name: str) -> tuple[Any, ...] | None:
        return tx.execute(SQL["insert_run"], _columns(submission, bundle_hash, name)).fetchone()

    key = {"owner": submission.owner, "idempotency_key": submission.idempotency_key}
    return insert_named(tx, submission.name, key, insert)


def _columns(submission: Submission, bundle_hash: ObjectHash, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "app": submission.app,
        "bundle_hash": bundle_hash,
        "config": Jsonb(dict(submission.config)),
        "seed": submission.seed,
        "owner": submission.owner,
        "idempotency_key": submission.idempotency_key,
        "node_selector": list(submission.select),
        "min_nodes": submission.min_nodes,
        "priority": submission.priority,
        "weight": submission.weight,
        "wall_time_limit": _span(submission.wall_time_limit),
        "keep_replies": submission.keep_replies,
        "keep_checkpoints": submission.keep_checkpoints,
    }


def _span(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)


def _changed(rows: int, run_id: RunId, to: RunStatus) -> None:
    if rows != 1:
        raise IllegalTransition(f"run {run_id} cannot become {to} from where it stands")


def _run_row(row: tuple[Any, ...]) -> RunRow:
    (
        run_id, name, app, owner, status, outcome, reason, attempt, rounds_planned, rounds_done, tasks_open, results_ok,
        results_error, stop_requested, config, select, bundle, created_at, started_at, running_at, finished_at,
        forked_from, forked_from_round, rerun_of, wall_time_limit, active_time,
    ) = row  # fmt: skip
    return RunRow(
        run_id=RunId(run_id),
        name=name,
        app=app,
        owner=owner,
        status=RunStatus(status),
        outcome=None if outcome is None else Outcome(outcome),
        reason=reason,
        attempt=attempt,
        rounds_planned=rounds_planned,
        rounds_done=rounds_done,
        tasks_open=tasks_open,
        results_ok=results_ok,
        results_error=results_error,
        stop_requested=stop_requested,
        config=config,
        select=tuple(select),
        bundle=ObjectHash(bytes(bundle)),
        created_at=created_at,
        started_at=started_at,
        running_at=running_at,
        finished_at=finished_at,
        forked_from=forked_from,
        forked_from_round=forked_from_round,
        rerun_of=rerun_of,
        wall_time_limit=wall_time_limit,
        active_time=active_time,
    )
