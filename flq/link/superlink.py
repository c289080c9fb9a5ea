"""The SuperLink's long-running process: dispatches pending runs and sweeps."""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable

import flq
from flq import log
from flq.errors import DatabaseUnreachable, LinkError
from flq.link import maintenance, notify, processes
from flq.link.database import Database
from flq.link.dispatch import Dispatcher, Publish
from flq.wire.fleet import HEARTBEAT_SECONDS
from flq.wire.runs import ProcessSpec
from flq.wire.status import ProcessKind

logger = log.get(__name__)

RETRY_SECONDS = 0.5
RETRY_MOST_SECONDS = 5.0


class SuperLink:
    """Dispatches when something happens to a run, sweeps every second, until `stop` is called."""

    def __init__(self, dsn: str, publish: Publish) -> None:
        self._db = Database(dsn, application="flq superlink")
        self._dispatcher = Dispatcher(self._db, publish)
        self._stopped = threading.Event()
        self._listener: notify.Listener | None = None
        self._spec = ProcessSpec(
            process_id=uuid.uuid4().hex,
            kind=ProcessKind.SUPERLINK,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=flq.__version__,
            slots=0,
        )

    def serve(self, ready: Callable[[], None]) -> None:
        """Work until `stop`; calls `ready` once it listens. A database that goes away is waited for.

        Raises `DatabaseUnreachable` if it cannot be reached in the beginning.
        """
        maintenance.make_partitions(self._db)
        processes.register(self._db, self._spec)
        self._listener = notify.Listener(self._db.dsn, notify.RUNS, application="flq superlink listener")
        ready()
        delay = RETRY_SECONDS
        while not self._stopped.is_set():
            try:
                self._serve_connected(self._listener)
            except (DatabaseUnreachable, LinkError) as exc:
                logger.warning("%s; trying again in %.1f s", exc, delay)
                self._stopped.wait(delay)
                delay = min(delay * 2, RETRY_MOST_SECONDS)
            else:
                delay = RETRY_SECONDS
        self._leave()

    def stop(self) -> None:
        """Make `serve` return. May be called from a signal handler."""
        self._stopped.set()
        if self._listener is not None:
            self._listener.interrupt()

    def _serve_connected(self, listener: notify.Listener) -> None:
        """Dispatch at once when told, and sweep by the clock."""
        processes.register(self._db, self._spec)
        swept = made = time.monotonic()
        while not self._stopped.is_set():
            self._dispatcher.step()
            now = time.monotonic()
            if now - swept >= maintenance.EVERY_SECONDS:
                processes.beat(self._db, self._spec.process_id)
                maintenance.sweep(self._db)
                swept = now
            if now - made >= maintenance.PARTITIONS_EVERY_SECONDS:
                maintenance.make_partitions(self._db)
                made = now
            listener.wait(HEARTBEAT_SECONDS)

    def _leave(self) -> None:
        try:
            processes.retire(self._db, self._spec.process_id)
        except DatabaseUnreachable as exc:
            logger.warning("could not say goodbye: %s", exc)
        if self._listener is not None:
            self._listener.close()
        self._db.close()


def serve(dsn: str, publish: Publish, *, stop: threading.Event, ready: Callable[[], None]) -> None:
    """Run a SuperLink until `stop` is set."""
    superlink = SuperLink(dsn, publish)

    def watch() -> None:
        stop.wait()
        superlink.stop()

    threading.Thread(target=watch, daemon=True).start()
    superlink.serve(ready)
