"""Attempts: allocated by the dispatcher, claimed by a SuperExec, ended once.

Every function that changes an attempt locks its run first: a stop, a take-over and an end come one after another.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from flq.link import events, runs
from flq.link.database import Database, Tx
from flq.link.sql import load
from flq.wire.ids import FENCE_BITS, RunId
from flq.wire.runs import AttemptRow, Job, RunInfo
from flq.wire.status import AttemptStatus, Outcome, RunStatus

SQL: Final = load("attempts")

LEASE_SECONDS = 15.0
"""How long a SuperExec holds an attempt without renewing it."""

MAX_ATTEMPTS = 5
"""An attempt that dies with its process is followed by another one, up to this many that commit no round."""

BACK_OFF_SECONDS = 1.0
"""Before the third such attempt, doubled before each one that follows. The second one begins at once."""

PATIENCE_SECONDS = 3.0
"""A published job that nobody takes for so long is published again; the time doubles with every publication."""

MOST_PATIENCE_SECONDS = 12.0
"""The longest such time."""

OVERLONG_GRACE_SECONDS = 5.0
"""What a SuperExec has to end a run itself whose wall-time limit has passed."""


@dataclass(frozen=True, slots=True)
class AttemptClaim:
    """An attempt that this SuperExec holds now.

    `wall_time_limit` is that of the run in seconds, `wall_time_used` what its attempts have used of it until the claim.
    """

    run: RunInfo
    attempt: int
    token: int
    wall_time_limit: float | None
    wall_time_used: float = 0.0

    @property
    def wall_time_left(self) -> float | None:
        """Seconds until the run has to end, or None."""
        return None if self.wall_time_limit is None else max(0.0, self.wall_time_limit - self.wall_time_used)


@dataclass(frozen=True, slots=True)
class AttemptState:
    """Whether the attempt is still ours, and whether somebody wants the run to stop."""

    ours: bool
    stop_requested: bool


def allocate(db: Database) -> list[Job]:
    """Pending → starting for as many runs as there are free slots; the jobs are to be published after the commit."""
    with db.transaction() as tx:
        due = [RunId(run_id) for (run_id,) in tx.execute(SQL["due_runs"]).fetchall()]
        return [_allocate_one(tx, run_id) for run_id in due]


def unclaimed(db: Database, *, patience: float = PATIENCE_SECONDS) -> list[Job]:
    """The jobs to publish again, since nobody has taken them, or since the broker did not."""
    values = {"patience": patience, "most": MOST_PATIENCE_SECONDS}
    with db.connection() as connection:
        rows = connection.execute(SQL["unclaimed_attempts"], values).fetchall()
    return [Job(run_id=RunId(row[0]), name=row[1], attempt=row[2], job_id=row[3]) for row in rows]


def republished(db: Database, jobs: Sequence[Job]) -> None:
    """Note that the broker has taken jobs that were due again: it may have refused them before."""
    if jobs:
        with db.connection() as connection:
            connection.execute(SQL["republished_attempts"], _columns(jobs))


def delayed(db: Database, jobs: Sequence[Job], *, reason: str) -> None:
    """Note that jobs could not be published, and why; whoever asks what their runs wait for is told."""
    with db.connection() as connection:
        connection.execute(SQL["unpublish_attempts"], {**_columns(jobs), "reason": reason})


def claim(db: Database, *, run_id: RunId, attempt: int, process_id: str, job_id: str) -> AttemptClaim | None:
    """Take an attempt; None if another SuperExec has it, or if it is over. Raises `RunUnknown`."""
    with db.transaction() as tx:
        locked = runs.lock(tx, run_id)
        if locked.status != RunStatus.STARTING or locked.attempt != attempt or locked.stop_requested:
            return None
        values = {
            "run_id": run_id, "attempt": attempt, "process_id": process_id, "job_id": job_id, "lease": LEASE_SECONDS,
        }  # fmt: skip
        row = tx.execute(SQL["claim_attempt"], values).fetchone()
        if row is None:
            return None
        limit, used = tx.execute(SQL["wall_time"], {"run_id": run_id}).fetchone() or (None, 0.0)
        events.record(tx, run_id, "claimed", actor="superexec", details={"attempt": attempt, "job": job_id})
        return AttemptClaim(
            run=runs.info_in(tx, run_id), attempt=attempt, token=row[0], wall_time_limit=limit, wall_time_used=used
        )


def launched(db: Database, *, run_id: RunId, token: int, pid: int) -> None:
    """Note the ServerApp's process."""
    with db.connection() as connection:
        connection.execute(SQL["launched_attempt"], {"run_id": run_id, "token": token, "pid": pid})


def renew(db: Database, *, run_id: RunId, token: int) -> AttemptState:
    """Prolong the lease of an attempt."""
    with db.connection() as connection:
        row = connection.execute(
            SQL["renew_attempt"], {"run_id": run_id, "token": token, "lease": LEASE_SECONDS}
        ).fetchone()
    return AttemptState(ours=row is not None, stop_requested=bool(row and row[0]))


def finish(
    db: Database,
    *,
    run_id: RunId,
    token: int,
    outcome: Outcome,
    reason: str | None,
    exit_code: int | None,
    error: str | None = None,
) -> bool:
    """End the attempt and its run; false, and nothing changed, if the attempt is no longer current."""
    with db.transaction() as tx:
        locked = runs.lock(tx, run_id)
        if locked.token != token:
            return False
        _end(tx, run_id, locked.attempt, exit_code=exit_code, error=error)
        runs.finish(tx, run_id, outcome, actor="superexec", reason=reason)
    return True


def release(
    db: Database,
    *,
    run_id: RunId,
    token: int,
    reason: str,
    exit_code: int | None = None,
    error: str | None = None,
    excused: bool = False,
) -> bool:
    """End the attempt, not by the app's doing: another one follows, unless there were too many or a stop was requested.

    An attempt that is `excused`, since its SuperExec was shut down, does not count as one too many. False, and nothing
    changed, if the attempt is no longer current.
    """
    with db.transaction() as tx:
        locked = runs.lock(tx, run_id)
        if locked.token != token:
            return False
        _end(tx, run_id, locked.attempt, exit_code=exit_code, error=error or reason)
        futile = 0 if excused else _futile(tx, run_id)
        if locked.stop_requested:
            runs.finish(tx, run_id, Outcome.STOPPED, actor="superlink", reason="stopped as requested")
        elif futile >= MAX_ATTEMPTS:
            text = f"{MAX_ATTEMPTS} attempts have ended early, the last one because {reason}"
            runs.finish(tx, run_id, Outcome.FAILED, actor="superlink", reason=text)
        else:
            runs.requeue(tx, run_id, actor="superlink", reason=reason, delay=back_off(futile), excused=excused)
    return True


def back_off(futile: int) -> float:
    """Seconds to wait before the next attempt, when so many in a row have committed no round."""
    return 0.0 if futile < 2 else BACK_OFF_SECONDS * 2.0 ** (futile - 2)  # noqa: PLR2004 - the first failure is free


def release_abandoned(db: Database) -> int:
    """Release the attempts whose SuperExec is gone; returns how many."""
    with db.connection() as connection:
        rows = connection.execute(SQL["abandoned_attempts"]).fetchall()
    reason = "its SuperExec stopped renewing the lease"
    return sum(release(db, run_id=RunId(run_id), token=token, reason=reason) for run_id, _, token in rows)


def release_former(db: Database, *, process_id: str, reason: str) -> int:
    """Release the attempts of a SuperExec that is known to be gone, whatever their leases say; returns how many."""
    with db.connection() as connection:
        rows = connection.execute(SQL["attempts_of_process"], {"process_id": process_id}).fetchall()
    return sum(release(db, run_id=RunId(run_id), token=token, reason=reason) for run_id, token in rows)


def release_lost(db: Database, *, run_id: RunId, attempt: int, process_id: str, reason: str) -> bool:
    """Release an attempt whose pool process is gone; false if this SuperExec does not hold it any more."""
    values = {"run_id": run_id, "attempt": attempt, "process_id": process_id}
    with db.connection() as connection:
        row = connection.execute(SQL["held_attempt"], values).fetchone()
    return row is not None and release(db, run_id=run_id, token=row[0], reason=reason)


def end_overlong(db: Database) -> int:
    """Fail the runs whose wall-time limit has passed and that no SuperExec has ended; returns how many.

    Pending ones too: what they may use is used up.
    """
    with db.connection() as connection:
        rows = connection.execute(SQL["overlong_runs"], {"grace": OVERLONG_GRACE_SECONDS, "run_id": None}).fetchall()
    return sum(_end_overlong(db, RunId(run_id)) for (run_id,) in rows)


def overlong(limit: float) -> str:
    """The reason of a run that ended at its wall-time limit of so many seconds."""
    return f"its wall-time limit of {limit:g} s passed"


def stop(db: Database, run_id: RunId, *, actor: str, reason: str | None) -> None:
    """Ask a run to stop: one that no SuperExec holds is finished at once. A finished one is left as it is.

    The open tasks of a held one are cancelled here and now, so that its ClientApps end before its ServerApp does.
    """
    with db.transaction() as tx:
        locked = runs.lock(tx, run_id)
        if locked.status == RunStatus.FINISHED:
            return
        if locked.status == RunStatus.PENDING or _end_unclaimed(tx, run_id, locked.attempt):
            runs.finish(tx, run_id, Outcome.STOPPED, actor=actor, reason=reason or f"stopped by {actor}")
        elif not locked.stop_requested:
            runs.request_stop(tx, run_id, actor=actor, reason=reason)


def listing(db: Database, run_id: RunId) -> list[AttemptRow]:
    """The attempts of a run, in order."""
    with db.connection() as connection:
        rows = connection.execute(SQL["list_attempts"], {"run_id": run_id}).fetchall()
    return [
        AttemptRow(
            attempt=attempt,
            status=AttemptStatus(status),
            host=host,
            pid=pid,
            job_id=job_id,
            exit_code=exit_code,
            error=error,
            published_at=published_at,
            claimed_at=claimed_at,
            ended_at=ended_at,
        )
        for attempt, status, host, pid, job_id, exit_code, error, published_at, claimed_at, ended_at in rows
    ]


def _allocate_one(tx: Tx, run_id: RunId) -> Job:
    token = secrets.randbits(FENCE_BITS) or 1
    job_id = str(uuid.uuid4())
    row = tx.execute(SQL["start_attempt"], {"run_id": run_id, "token": token}).fetchone()
    assert row is not None, "the run is locked and pending"  # noqa: S101 - `due_runs` has just said so
    name, attempt = row
    tx.execute(SQL["insert_attempt"], {"run_id": run_id, "attempt": attempt, "token": token, "job_id": job_id})
    events.record(tx, run_id, "starting", actor="superlink", details={"attempt": attempt, "job": job_id})
    return Job(run_id=run_id, name=name, attempt=attempt, job_id=job_id)


def _columns(jobs: Sequence[Job]) -> dict[str, Any]:
    return {
        "run_ids": [job.run_id for job in jobs],
        "attempts": [job.attempt for job in jobs],
        "job_ids": [job.job_id for job in jobs],
    }


def _end(tx: Tx, run_id: RunId, attempt: int, *, exit_code: int | None, error: str | None) -> None:
    tx.execute(SQL["end_attempt"], {"run_id": run_id, "attempt": attempt, "exit_code": exit_code, "error": error})


def _end_overlong(db: Database, run_id: RunId) -> bool:
    with db.transaction() as tx:
        locked = runs.lock(tx, run_id)
        values = {"grace": OVERLONG_GRACE_SECONDS, "run_id": run_id}
        if tx.execute(SQL["overlong_runs"], values).fetchone() is None:
            return False  # it has ended or was resumed meanwhile
        (limit, _) = tx.execute(SQL["wall_time"], {"run_id": run_id}).fetchone() or (0.0, 0.0)
        reason = overlong(limit)
        _end(tx, run_id, locked.attempt, exit_code=None, error=reason)
        runs.finish(tx, run_id, Outcome.FAILED, actor="superlink", reason=reason)
    return True


def _futile(tx: Tx, run_id: RunId) -> int:
    row = tx.execute(SQL["futile_attempts"], {"run_id": run_id}).fetchone()
    return row[0] if row else 0


def _end_unclaimed(tx: Tx, run_id: RunId, attempt: int) -> bool:
    return tx.execute(SQL["end_unclaimed"], {"run_id": run_id, "attempt": attempt}).rowcount == 1
