"""The desk: the thread of a SuperExec's main process that talks to PostgreSQL.

It says once a second that the SuperExec lives, and passes on the stops that came through Celery. Its connection
belongs to the main process alone: pool children never use or close what they inherit of it.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass

from flq.errors import FlqError, Unreachable
from flq.link import attempts, processes, runs
from flq.link.database import Database
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


class Desk:
    """Speaks for one SuperExec. `stop_run` may be called from any thread."""

    def __init__(self, dsn: str, spec: ProcessSpec) -> None:
        self._db = Database(dsn, application="flq superexec", size=1)
        self._spec = spec
        self._stops: queue.SimpleQueue[Stop | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._unreachable = False

    def register(self) -> None:
        """Introduce the SuperExec, before any child is forked, and keep no connection. Raises `DatabaseUnreachable`."""
        processes.register(self._db, self._spec)
        self._db.close()
        self._db = Database(self._db.dsn, application="flq superexec", size=1)

    def open(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._work, name="flq-desk", daemon=True)
        self._thread.start()

    def stop_run(self, stop: Stop) -> None:
        """Ask the run to stop, soon, unless it has got beyond that attempt."""
        self._stops.put(stop)

    def close(self) -> None:
        """Say that the SuperExec has ended."""
        if self._thread is not None:
            self._stops.put(None)
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
                stop = self._stops.get(timeout=max(0.0, beat_at - time.monotonic()))
            except queue.Empty:
                beat_at = time.monotonic() + HEARTBEAT_SECONDS
                self._beat()
            else:
                if stop is None:
                    return
                self._pass_on(stop)

    def _beat(self) -> None:
        try:
            if not processes.beat(self._db, self._spec.process_id):
                processes.register(self._db, self._spec)
        except FlqError as exc:
            if not self._unreachable:
                log.warning("trying again until it works: %s", exc)
            self._unreachable = True
        else:
            self._unreachable = False

    def _pass_on(self, stop: Stop) -> None:
        try:
            (run,) = runs.listing(self._db, run_id=stop.run_id)
            if run.attempt == stop.attempt:
                attempts.stop(self._db, stop.run_id, actor="celery", reason=stop.reason)
        except Unreachable:
            self._stops.put(stop)
            time.sleep(HEARTBEAT_SECONDS)
        except FlqError:
            log.exception("run %d could not be stopped", stop.run_id)
