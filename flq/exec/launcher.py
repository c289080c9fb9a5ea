"""The launcher: takes an attempt of a run, starts its ServerApp, sees it to its end and records how it ended.

Runs inside a child of the SuperExec's Celery pool, one attempt at a time. The claim in PostgreSQL decides who runs an
attempt; a job that finds it taken, outdated or over ends as ignored.

The main thread guards the process (`guard`), the scribe's thread talks to PostgreSQL meanwhile (`scribe`).
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import FrameType
from typing import Self

from flq.errors import FlqError, Unreachable
from flq.exec.ending import Ending
from flq.exec.guard import Cause, Guard
from flq.exec.handover import Credentials, work_folder
from flq.exec.lifeline import Lifeline, die_with
from flq.exec.process import ServerAppProcess
from flq.exec.scribe import Scribe
from flq.failpoints import reach
from flq.link import attempts
from flq.link.attempts import AttemptClaim
from flq.link.database import Database
from flq.log import get
from flq.wire.ids import RunId

log = get(__name__)

PATIENCE_SECONDS = 60.0
"""How long to try to record an end while PostgreSQL cannot be reached. After that the attempt's lease speaks."""

HASTE_SECONDS = 3.0
"""The same when the SuperExec is about to end."""

VERDICT_SECONDS = 3.0
"""How long to wait after a SIGTERM for the word that the job was revoked."""

_RETRY_SECONDS = 0.1


class Launcher:
    """Launches attempts. Made in the SuperExec's main process; `settle` makes it a pool child's own.

    It keeps one process ahead, which has imported what any ServerApp needs (`spare`), and uses it for one attempt.
    `install_deps` allows ServerApps to install what their apps depend on.
    """

    def __init__(
        self,
        *,
        dsn: str,
        process_id: str,
        home: Path,
        lifeline: Lifeline,
        threads: int,
        spare: bool = True,
        install_deps: bool = False,
    ) -> None:
        self._dsn = dsn
        self._process_id = process_id
        self._home = home
        self._lifeline = lifeline
        self._threads = threads
        self._keeps_spare = spare
        self._install_deps = install_deps
        self._spare: ServerAppProcess | None = None
        self._main = os.getpid()
        self._is_child = False
        self._db = Database(dsn, application="flq superexec", size=3)  # connects when it is first used

    def settle(self) -> None:
        """Become a child: called once in each, after the fork."""
        self._is_child = True
        die_with(self._main, signal.SIGKILL)
        self._lifeline.hold()
        self._prepare()

    def launch(self, *, run_id: RunId, attempt: int, job_id: str) -> str:
        """Execute an attempt, from its claim to its recorded end; says how it ended."""
        with Termination(self._main if self._is_child else None) as termination:
            try:
                claim = attempts.claim(
                    self._db, run_id=run_id, attempt=attempt, process_id=self._process_id, job_id=job_id
                )
            except Unreachable as exc:
                log.warning("job %s: %s; it will be published again", job_id, exc)
                return "ignored"
            if claim is None:
                log.info("job %s: attempt %d of run %d is taken, outdated or over", job_id, attempt, run_id)
                return "ignored"
            ended = self._execute(claim, termination)
        log.info("%s: attempt %d: %s", claim.run.name, claim.attempt, ended)
        self._prepare()
        return ended

    def close(self) -> None:
        """Give back what the launcher holds."""
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.reap()
        self._db.close()

    def _execute(self, claim: AttemptClaim, termination: Termination) -> str:
        with ExitStack() as stack:
            process = self._process()
            stack.callback(process.reap)
            scribe = Scribe(self._db, claim)
            guard = stack.enter_context(closing(Guard(process, self._lifeline, scribe, limit=claim.wall_time_left)))
            scribe.on_news = lambda: guard.stop(Cause.FENCED if scribe.fenced else Cause.STOP)
            termination.act = lambda: guard.stop(Cause.TERMINATED)
            reach("superexec.before-launch")
            process.begin(self._credentials(claim))
            scribe.say(f"attempt {claim.attempt}: ServerApp started on {socket.gethostname()}, pid {process.pid}")
            scribe.start(pid=process.pid)
            stack.callback(scribe.close)
            cause = guard.watch()
            exit_code, report = process.reap()
            with suppress(OSError):  # it is not empty
                work_folder(self._home, claim.run.name).rmdir()
            ending = Ending.of(self._root_of(cause, exit_code, scribe), exit_code, report, claim.wall_time_limit)
            scribe.say(f"attempt {claim.attempt}: {ending.told}", level=ending.level)
            self._insist(scribe.flush)
            reach("superexec.before-record")
            self._insist(lambda: self._record(claim, ending))
            return ending.outcome or "given back"

    def _root_of(self, cause: Cause, exit_code: int, scribe: Scribe) -> Cause:
        """What was behind the cause that was noticed first."""
        if cause is Cause.TERMINATED:
            return self._root_of_sigterm(scribe)
        if cause is Cause.ITSELF and exit_code != 0:
            self._insist(scribe.look)
            if scribe.stop_requested:  # a stop cancels the run's tasks, of which its ServerApp may die
                return Cause.STOP
        return cause

    def _root_of_sigterm(self, scribe: Scribe) -> Cause:
        """Who sent it: the main process for a revoked job, the kernel for its death, or somebody else."""
        give_up = time.monotonic() + VERDICT_SECONDS
        while not self._is_orphan():
            self._insist(scribe.look)  # the main process asks for the stop of a run whose job was revoked
            if scribe.stop_requested:
                return Cause.TERMINATED
            if time.monotonic() > give_up:
                return Cause.EVICTED
            time.sleep(_RETRY_SECONDS)
        return Cause.SHUTDOWN

    def _record(self, claim: AttemptClaim, ending: Ending) -> None:
        run_id, token = claim.run.run_id, claim.token
        if ending.outcome is not None:
            attempts.finish(
                self._db,
                run_id=run_id,
                token=token,
                outcome=ending.outcome,
                reason=ending.reason,
                exit_code=ending.exit_code,
                error=ending.error,
            )
        elif ending.reason is not None:
            attempts.release(
                self._db,
                run_id=run_id,
                token=token,
                reason=ending.reason,
                exit_code=ending.exit_code,
                error=ending.error,
                excused=ending.excused,
            )

    def _insist(self, step: Callable[[], None]) -> None:
        """Try again while PostgreSQL cannot be reached, but not for ever."""
        begun = time.monotonic()
        while True:
            try:
                return step()
            except Unreachable as exc:
                patience = HASTE_SECONDS if self._is_orphan() else PATIENCE_SECONDS
                if time.monotonic() - begun > patience:
                    log.error("the end of an attempt could not be written down: %s", exc)  # noqa: TRY400 - told in full
                    return None
                time.sleep(_RETRY_SECONDS)
            except FlqError:
                log.exception("the end of an attempt could not be written down")
                return None

    def _is_orphan(self) -> bool:
        """Whether the main process shuts down, or is gone."""
        return self._lifeline.is_cut() or (self._is_child and os.getppid() != self._main)

    def _credentials(self, claim: AttemptClaim) -> Credentials:
        return Credentials(
            dsn=self._dsn,
            run_id=claim.run.run_id,
            token=claim.token,
            attempt=claim.attempt,
            home=self._home,
            install_deps=self._install_deps,
        )

    def _process(self) -> ServerAppProcess:
        spare, self._spare = self._spare, None
        if spare is not None and not spare.ended():
            return spare
        if spare is not None:
            spare.reap()
        return ServerAppProcess(threads=self._threads)

    def _prepare(self) -> None:
        if self._keeps_spare and self._spare is None and not self._lifeline.is_cut():
            self._spare = ServerAppProcess(threads=self._threads)


class Termination:
    """Catches the SIGTERM that comes for a job, or with the death of the main process `parent`.

    A context. At its end the former handler gets its turn: Celery then sees the job as terminated. While no job
    runs there is nothing to record, and the death of the main process kills the child at once.
    """

    def __init__(self, parent: int | None) -> None:
        self._parent = parent
        self._came = False
        self._act: Callable[[], None] | None = None

    @property
    def act(self) -> Callable[[], None] | None:
        """What the signal does; at once if it has come already."""
        return self._act

    @act.setter
    def act(self, act: Callable[[], None]) -> None:
        self._act = act
        if self._came:
            act()

    def __enter__(self) -> Self:
        self._former = signal.signal(signal.SIGTERM, self._on_signal)
        if self._parent is not None:
            die_with(self._parent, signal.SIGTERM)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._former)
        if self._parent is not None:
            die_with(self._parent, signal.SIGKILL)
        if self._came:
            signal.raise_signal(signal.SIGTERM)

    def _on_signal(self, _signum: int, _frame: FrameType | None) -> None:
        self._came = True
        if self._act is not None:
            self._act()
