"""The desk: the thread of a SuperExec's main process that talks to PostgreSQL.

It says once a second that the SuperExec lives, and what its probe has found, passes on the stops that came through
Celery, and gives back the attempts of pool children that were killed. Its connection belongs to the main process alone:
pool children never use or close what they inherit of it.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass

from flq.errors import FlqError, Unreachable
from flq.failpoints import reach
from flq.link import attempts, processes, runs
from flq.link.database import Database
from flq.link.processes import Consumption
from flq.log import get
from flq.wire.fleet import HEARTBEAT_SECONDS
from flq.wire.ids import RunId
from flq.wire.runs import ProcessSpec

log = get(__name__)


@dataclass(frozen=True, slots=True)
class Stop:
    """An attempt whose job was revoked or terminated through Celery."""

    run_id: RunId
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """An attempt whose pool child is gone, and its ServerApp with it."""

    run_id: RunId
    attempt: int


class Desk:
    """Speaks for one SuperExec. Whatever hands it something may be called from any thread."""

    def __init__(self, dsn: str, spec: ProcessSpec) -> None:
        self._db = Database(dsn, application="flq superexec", size=1)
        self._spec = spec
        self._errands: queue.SimpleQueue[Stop | Lost | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._unreachable = False
        self._consumption: Consumption | None = None
        self._noting = threading.Lock()

    def register(self, *, former: str | None = None) -> None:
        """Introduce the SuperExec, before any child is forked, and keep no connection.

        `former` is the process id of the one whose place it takes, and which is gone: what that held is given back here
        and now. Raises `DatabaseUnreachable`.
        """
        processes.register(self._db, self._spec)
        if former is not None:
            attempts.release_former(self._db, process_id=former, reason="its SuperExec was restarted")
        self._db.close()
        self._db = Database(self._db.dsn, application="flq superexec", size=1)

    def open(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._work, name="flq-desk", daemon=True)
        self._thread.start()

    def stop_run(self, stop: Stop) -> None:
        """Ask the run to stop, soon, unless it has got beyond that attempt."""
        self._errands.put(stop)

    def release_attempt(self, lost: Lost) -> None:
        """Give an attempt back, soon, if it is still this SuperExec's."""
        self._errands.put(lost)

    def note_consumption(self, consumption: Consumption) -> None:
        """Write down, with the next heartbeat, how the SuperExec consumes."""
        with self._noting:
            self._consumption = consumption

    def close(self) -> None:
        """Say that the SuperExec has ended."""
        if self._thread is not None:
            self._errands.put(None)
            self._thread.join()
        try:
            processes.retire(self._db, self._spec.process_id)
        except FlqError as exc:
            log.warning("the end of this SuperExec could not be written down: %s", exc)
        self._db.close()

    def _work(self) -> None:
        beat_at = time.monotonic()
        while True:
            try:
                errand = self._errands.get(timeout=max(0.0, beat_at - time.monotonic()))
            except queue.Empty:
                beat_at = time.monotonic() + HEARTBEAT_SECONDS
                self._beat()
            else:
                if errand is None:
                    return
                self._run_errand(errand)

    def _beat(self) -> None:
        reach("superexec.main")
        try:
            if not processes.beat(self._db, self._spec.process_id):
                processes.register(self._db, self._spec)
            self._write_down()
        except FlqError as exc:
            if not self._unreachable:
                log.warning("trying again until it works: %s", exc)
            self._unreachable = True
        else:
            self._unreachable = False

    def _write_down(self) -> None:
        with self._noting:
            consumption, self._consumption = self._consumption, None
        if consumption is None:
            return
        try:
            processes.note_consumption(self._db, self._spec.process_id, consumption)
        except FlqError:
            with self._noting:
                self._consumption = self._consumption or consumption
            raise

    def _run_errand(self, errand: Stop | Lost) -> None:
        try:
            if isinstance(errand, Stop):
                self._pass_on(errand)
            else:
                self._give_back(errand)
        except Unreachable:
            self._errands.put(errand)
            time.sleep(HEARTBEAT_SECONDS)
        except FlqError:
            log.exception("run %d: what came of its job could not be written down", errand.run_id)

    def _pass_on(self, stop: Stop) -> None:
        (run,) = runs.listing(self._db, run_id=stop.run_id)
        if run.attempt == stop.attempt:
            attempts.stop(self._db, stop.run_id, actor="celery", reason=stop.reason)

    def _give_back(self, lost: Lost) -> None:
        attempts.release_lost(
            self._db,
            run_id=lost.run_id,
            attempt=lost.attempt,
            process_id=self._spec.process_id,
            reason="the process that held it was killed",
        )
