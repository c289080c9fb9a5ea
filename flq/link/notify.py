"""LISTEN/NOTIFY: a hint that something changed. Whoever is woken looks at the tables; whoever is not, polls.

A process has one listener. It registers before it looks, so that what comes after the look wakes it. Behind a
transaction pooler nobody can listen: there a wait is a short poll, and whoever waits looks at everything.
"""

from __future__ import annotations

import os
import select
import threading
from contextlib import suppress
from dataclasses import dataclass
from random import Random

from psycopg import sql

from flq.errors import DatabaseUnreachable
from flq.link.database import Tx, connect, is_pooled, translated
from flq.wire.ids import RunId

_JITTER = Random()  # noqa: S311 - spreads the load. The global generator is the app's: its draws must not shift

TASKS = "flq_tasks"
"""Told by a push, with `run batch lowest-task-id`."""

RUNS = "flq_runs"
"""Told when a run is submitted, asked to stop, changes its state or commits a round, with the run's id."""


def results_channel(run_id: RunId) -> str:
    """The channel on which a run's ServerApp hears of results: told once per flush."""
    return f"flq_results_{run_id}"


def tell(tx: Tx, channel: str, payload: str) -> None:
    """Notify when the transaction commits. Never per row: it takes a database-wide lock over the commit."""
    tx.execute("SELECT pg_notify(%s, %s)", (channel, payload))


@dataclass(frozen=True, slots=True)
class Notice:
    """A notification. `channel` is empty for the one that stands for all that a lost connection may have missed."""

    channel: str
    payload: str


LOST = Notice("", "")

POLL_SECONDS = (0.5, 1.0)
"""How long a wait takes where nobody can listen, at random in between: so that not all look at once."""


class Listener:
    """One connection that listens and reconnects. One thread waits at a time; any may interrupt or close."""

    def __init__(self, dsn: str, *channels: str, application: str = "flq listener") -> None:
        self._dsn = dsn
        self._channels = channels
        self._application = application
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._waiting = threading.Lock()
        self._closed = False
        self._connection = self._listen()

    def wait(self, seconds: float) -> list[Notice]:
        """What was notified, waiting at most `seconds` for the first of it.

        After a lost connection the answer is `[LOST]` once it is back. Raises `DatabaseUnreachable` while it is not,
        and after `close`.
        """
        with self._waiting:
            if self._closed:
                raise DatabaseUnreachable("this listener is closed")
            if self._connection.closed:
                self._connection = self._listen()
                return [LOST]
            if is_pooled(self._connection):
                return self._pause(seconds)
            try:
                return self._notices(seconds)
            except DatabaseUnreachable:
                self._connection.close()
                raise

    def interrupt(self) -> None:
        """End the present or the next `wait` at once. May be called from any thread and from a signal handler."""
        with suppress(BlockingIOError):  # the pipe is full: the wait ends anyway
            os.write(self._wake_write, b"!")

    def close(self) -> None:
        """Stop listening; ends a `wait` of another thread."""
        self._closed = True
        self.interrupt()
        with self._waiting:
            self._connection.close()
            os.close(self._wake_read)
            os.close(self._wake_write)

    def _notices(self, seconds: float) -> list[Notice]:
        with translated(self._connection):
            at_once = self._received()
            if at_once:
                return at_once
            ready, _, _ = select.select([self._connection.fileno(), self._wake_read], [], [], max(seconds, 0))
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
            return self._received() if self._connection.fileno() in ready else []

    def _pause(self, seconds: float) -> list[Notice]:
        limit = min(max(seconds, 0), _JITTER.uniform(*POLL_SECONDS))
        ready, _, _ = select.select([self._wake_read], [], [], limit)
        if ready:
            os.read(self._wake_read, 4096)
        return [LOST]

    def _received(self) -> list[Notice]:
        return [Notice(found.channel, found.payload) for found in self._connection.notifies(timeout=0)]

    def _listen(self) -> Tx:
        connection = connect(self._dsn, application=self._application)
        if is_pooled(connection):
            return connection
        with translated(connection):
            for channel in self._channels:
                connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        return connection
