"""What must hold after a disturbed run, whatever has happened to it."""

from __future__ import annotations

from dataclasses import dataclass

import psutil  # type: ignore[import-untyped]  # it has no types of its own

from flq.link import verify
from flq.link.database import Database
from tests.chaos.federation import Federation
from tests.chaos.observer import Observer
from tests.waiting import eventually

ARTIFACT = """
    SELECT encode(object_hash, 'hex') FROM flq_state.artifact WHERE run_id = %(run_id)s AND name = 'weights.bin'
"""
BATCHES = """
    SELECT b.branch, b.sequence, b.round, b.kind, b.tasks, count(s.task_id), count(*) FILTER (WHERE s.status = 'ok')
    FROM flq_state.batch b LEFT JOIN flq_state.result s ON s.batch_id = b.batch_id
    WHERE b.run_id = %(run_id)s
    GROUP BY b.batch_id ORDER BY b.sequence, b.branch
"""
ERRORS = """
    SELECT DISTINCT status::text, error_code, left(error_text, 300) FROM flq_state.result
    WHERE run_id = %(run_id)s AND status <> 'ok'
"""
ROUNDS = "SELECT round, count(*) FROM flq_state.checkpoint WHERE run_id = %(run_id)s GROUP BY round ORDER BY round"
FOLDER = "SELECT name FROM flq_state.run WHERE run_id = %(run_id)s"


@dataclass(frozen=True, slots=True)
class Reference:
    """What an undisturbed run has come to: the hash of its weights, its pushes, its commits."""

    weights: str
    batches: tuple[tuple[object, ...], ...]
    rounds: tuple[tuple[object, ...], ...]

    @property
    def tasks(self) -> int:
        """How many tasks the run has."""
        return sum(int(str(batch[4])) for batch in self.batches)


def reference(observer: Observer) -> Reference:
    """Read it from a run that has finished."""
    found = observer.rows(ARTIFACT)
    return Reference(
        weights=found[0][0] if found else "none",
        batches=tuple(observer.rows(BATCHES)),
        rounds=tuple(observer.rows(ROUNDS)),
    )


def broken(federation: Federation, observer: Observer, undisturbed: Reference) -> list[str]:
    """What does not hold of a run that has finished; nothing, if all is well."""
    return [*_of_run(observer, undisturbed), *_of_federation(federation), *_left_over(federation, observer)]


def _of_run(observer: Observer, undisturbed: Reference) -> list[str]:
    state = observer.state()
    if state.outcome != "completed":
        return [f"the run has {state.outcome}: {state.reason}"]
    observer.look()
    found = reference(observer)
    told = list(observer.changed)
    if found.weights != undisturbed.weights:
        told.append(f"the weights are not those of an undisturbed run: {found.weights[:12]}")
    if found.batches != undisturbed.batches:
        ours, theirs = set(found.batches), set(undisturbed.batches)
        told += [f"pushed, and not by the undisturbed run: {row}" for row in sorted(ours - theirs, key=str)]
        told += [f"pushed by the undisturbed run only: {row}" for row in sorted(theirs - ours, key=str)]
        told += [f"a task has ended with {row}" for row in observer.rows(ERRORS)]
    if found.rounds != undisturbed.rounds:
        told.append(f"rounds were committed as {found.rounds}, not {undisturbed.rounds}")
    return told


def _of_federation(federation: Federation) -> list[str]:
    db = Database(federation.dsn, application="chaos", size=1)
    try:
        return [f"flq verify, {found.invariant}: {found.broken}" for found in verify.run(db) if not found.holds]
    finally:
        db.close()


def _left_over(federation: Federation, observer: Observer) -> list[str]:
    ((name,),) = observer.rows(FOLDER)
    work = federation.home / "work" / name

    def left() -> list[psutil.Process]:
        strays = federation.strays()
        busy = [process for process in federation.family() if _works_in(process, str(work))]
        return [*strays, *busy]

    try:
        eventually(lambda: not left(), timeout=10, what="the end of the run's processes")
    except AssertionError:
        return [f"process {process.pid} was left over: {_command(process)}" for process in left()]
    return []


def _works_in(process: psutil.Process, folder: str) -> bool:
    try:
        return str(process.cwd()).startswith(folder)
    except psutil.Error:
        return False


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return "gone meanwhile"
