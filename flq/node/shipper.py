"""The shipper: a thread that appends the output of ClientApps to their runs' logs, in batches."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence

from flq.errors import FlqError, Unreachable
from flq.log import get
from flq.node.outage import Backoff, Outage
from flq.wire.fleet import Fleet
from flq.wire.ids import RunId
from flq.wire.runs import LogLine

log = get(__name__)

BATCH_LINES = 500
BATCH_SECONDS = 0.2
"""A line waits at most this long for others to travel with."""

Source = int
"""Who produced a line: a worker's number. The shipper reports per source how many lines it is done with."""

Shipped = Callable[[Counter[Source]], None]


class Shipper:
    """Takes lines from the main loop and appends them behind its back.

    It never drops a line that the SuperLink could still take. That memory stays bounded is up to whoever calls
    `put`: it stops reading from a source of which too many lines are under way, as `shipped` reports them.
    """

    def __init__(self, fleet: Fleet, outage: Outage, shipped: Shipped) -> None:
        self._fleet = fleet
        self._outage = outage
        self._shipped = shipped
        self._lines: deque[tuple[Source, RunId, LogLine]] = deque()
        self._change = threading.Condition()
        self._closing = False
        self._give_up_at: float | None = None
        self._thread = threading.Thread(target=self._work, name="flq-logs", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, source: Source, run_id: RunId, lines: Sequence[LogLine]) -> None:
        """Append `lines` to the run's log, soon."""
        if not lines:
            return
        with self._change:
            before = len(self._lines)
            self._lines.extend((source, run_id, line) for line in lines)
            # The thread is woken by the first line and by the one that fills a batch; in between it waits.
            if not before or before < BATCH_LINES <= len(self._lines):
                self._change.notify()

    def close(self, patience: float) -> None:
        """Append what is left, for at most `patience` seconds."""
        with self._change:
            self._closing = True
            self._give_up_at = time.monotonic() + patience
            self._change.notify()
        if self._thread.is_alive():
            self._thread.join(patience + 0.1)
        if self._lines:
            log.warning("%d lines of output were lost: the SuperLink could not take them in time", len(self._lines))

    def _work(self) -> None:
        while self._next_batch_is_due():
            batch = [self._lines[index] for index in range(min(BATCH_LINES, len(self._lines)))]
            if not self._append(batch):
                return
            for _ in batch:
                self._lines.popleft()
            self._shipped(Counter(source for source, _run_id, _line in batch))

    def _next_batch_is_due(self) -> bool:
        with self._change:
            while not self._lines:
                if self._closing:
                    return False
                self._change.wait()
            due = time.monotonic() + BATCH_SECONDS
            while len(self._lines) < BATCH_LINES and not self._closing and (left := due - time.monotonic()) > 0:
                self._change.wait(left)
            return True

    def _append(self, batch: Sequence[tuple[Source, RunId, LogLine]]) -> bool:
        """Append a batch. False if the SuperLink could not be reached until the shipper was to give up."""
        backoff = Backoff()
        while True:
            try:
                self._fleet.append_logs([(run_id, line) for _source, run_id, line in batch])
            except Unreachable as exc:
                self._outage.failed(exc, what="appending logs")
                if not self._pause(backoff.next()):
                    return False
            except FlqError as exc:
                # Refused for good: keeping the lines would hold up all that come after them.
                log.error("%d lines of output were refused: %s", len(batch), exc)  # noqa: TRY400 - the cause is told
                return True
            except Exception:
                log.exception("%d lines of output could not be appended", len(batch))
                return True
            else:
                self._outage.succeeded()
                return True

    def _pause(self, seconds: float) -> bool:
        with self._change:
            if self._give_up_at is not None and time.monotonic() >= self._give_up_at:
                return False
            self._change.wait(seconds)
            return True
