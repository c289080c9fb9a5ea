"""The scribe: the thread of a launcher that talks to PostgreSQL while a ServerApp runs.

It ships output to `flq.logs`, renews the attempt's lease, and hears of a requested stop. The launcher itself never
waits for the database while the process lives, so that an outage of PostgreSQL cannot keep a process alive.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice

from flq.errors import FlqError, Unreachable
from flq.failpoints import reach
from flq.link import attempts, logs, notify
from flq.link.attempts import AttemptClaim
from flq.link.database import Database
from flq.log import get
from flq.wire.runs import LogLine

log = get(__name__)

BATCH_SECONDS = 0.1
"""A line waits at most this long for others to travel with."""

BATCH_LINES = 1000
MAX_LINES = 20_000
"""So many lines are kept while PostgreSQL cannot be reached; then the ServerApp waits in its next print."""

LOOK_SECONDS = 1.0
"""How often the lease is renewed, which also tells of a requested stop whose notification was missed."""


class Scribe:
    """Writes down what happens to one attempt. `write`, `say` and `flush` may be called from any thread.

    `on_news` is called from the scribe's thread when `stop_requested` or `fenced` has become true.
    """

    def __init__(self, db: Database, claim: AttemptClaim) -> None:
        self.stop_requested = False
        self.fenced = False
        self.on_news: Callable[[], None] = lambda: None
        self._db = db
        self._claim = claim
        self._pid = 0
        self._lines: deque[LogLine] = deque()
        self._flushing = threading.Lock()
        self._flush_at: float | None = None
        self._closing = threading.Event()
        self._listener: notify.Listener | None = None
        self._unreachable = False
        self._thread = threading.Thread(target=self._work, name="flq-scribe", daemon=True)

    def start(self, *, pid: int) -> None:
        """Start the thread, which notes the ServerApp's `pid` first."""
        self._pid = pid
        self._thread.start()

    def write(self, lines: Iterable[LogLine]) -> None:
        """Append `lines` to the run's log, soon."""
        self._lines.extend(lines)
        if self._lines and self._flush_at is None:
            self._flush_at = time.monotonic() + BATCH_SECONDS
            self._nudge()

    def say(self, text: str, *, level: str = "INFO") -> None:
        """Append a line of SuperExec's own."""
        self.write([LogLine(at=datetime.now(UTC), source="superexec", level=level, text=text)])

    def is_full(self) -> bool:
        """Whether more lines had better wait in the ServerApp."""
        return len(self._lines) >= MAX_LINES

    def flush(self) -> None:
        """Append what there is now. Raises `DatabaseUnreachable`; the lines are kept then."""
        with self._flushing:
            self._flush_at = None
            while self._lines:
                batch = list(islice(self._lines, BATCH_LINES))
                logs.append(self._db, [(self._claim.run.run_id, line) for line in batch])
                for _ in batch:
                    self._lines.popleft()

    def close(self) -> None:
        """End the thread. Lines that could not be appended are lost, and that is logged."""
        self._closing.set()
        self._nudge()
        if self._thread.is_alive():
            self._thread.join()
        if self._lines:
            log.warning("%s: %d lines of output were lost", self._claim.run.name, len(self._lines))

    def _work(self) -> None:
        look_at = time.monotonic() + LOOK_SECONDS
        while not self._closing.is_set():
            try:
                if self._heard_of_run(self._pause(look_at)) or time.monotonic() >= look_at:
                    look_at = time.monotonic() + LOOK_SECONDS
                    self.look()
                if self._flush_at is not None and time.monotonic() >= self._flush_at:
                    self.flush()
                self._unreachable = False
            except Unreachable as exc:
                self._outage(exc)
                self._closing.wait(BATCH_SECONDS)
            except FlqError:
                log.exception("%s: its log or its lease could not be written", self._claim.run.name)
                self._closing.wait(LOOK_SECONDS)
        if self._listener is not None:
            self._listener.close()

    def _pause(self, look_at: float) -> float:
        due = look_at if self._flush_at is None else min(look_at, self._flush_at)
        return max(0.0, due - time.monotonic())

    def _heard_of_run(self, seconds: float) -> bool:
        """Wait for a notice of our run, a nudge or the end of `seconds`; the first call looks at once."""
        if self._listener is None:
            attempts.launched(self._db, run_id=self._claim.run.run_id, token=self._claim.token, pid=self._pid)
            self._listener = notify.Listener(self._db.dsn, notify.RUNS, application="flq superexec")
            return True
        mine = str(self._claim.run.run_id)
        return any(notice == notify.LOST or notice.payload == mine for notice in self._listener.wait(seconds))

    def look(self) -> None:
        """Renew the lease, and look whether the attempt is still ours and may go on. Raises `DatabaseUnreachable`."""
        reach("superexec.running")
        state = attempts.renew(self._db, run_id=self._claim.run.run_id, token=self._claim.token)
        news = (state.stop_requested and not self.stop_requested) or (not state.ours and not self.fenced)
        self.stop_requested = self.stop_requested or state.stop_requested
        self.fenced = self.fenced or not state.ours
        if news:
            self.on_news()

    def _nudge(self) -> None:
        listener = self._listener
        if listener is not None:
            with suppress(OSError):  # it has just been closed
                listener.interrupt()

    def _outage(self, exc: Unreachable) -> None:
        if not self._unreachable:
            log.warning("%s: trying again until it works: %s", self._claim.run.name, exc)
        self._unreachable = True
