"""The guard: serves a ServerApp's process until it is gone, whether it ends by itself or has to go.

The guard never waits for the database, so that no outage of it can keep alive a process that has to go.
"""

from __future__ import annotations

import os
import selectors
import signal
import time
from contextlib import suppress
from enum import StrEnum
from typing import Protocol

from flq.exec.lifeline import Lifeline
from flq.exec.output import Output
from flq.exec.process import ServerAppProcess
from flq.wire.runs import LogLine

GRACE_SECONDS = 2.0
"""From SIGTERM to SIGKILL, for the process and all that it started."""

FAREWELL_SECONDS = 10.0
"""How long a process may live on after its `main` has ended: threads and exit handlers of the app."""

_TICK_SECONDS = 0.5
_SHORT_TICK_SECONDS = 0.005


class Cause(StrEnum):
    """Why a ServerApp's process is gone."""

    ITSELF = "it ended by itself"
    STOP = "a stop was requested"
    FENCED = "another attempt has taken the run over"
    OVERDUE = "its wall-time limit passed"
    SHUTDOWN = "the SuperExec shut down"
    TERMINATED = "its job was terminated through Celery"
    EVICTED = "its pool process was terminated"


class Sink(Protocol):
    """Where the guard puts the output: the scribe."""

    def write(self, lines: list[LogLine]) -> None:
        """Take lines."""

    def is_full(self) -> bool:
        """Whether more had better wait."""


class Guard:
    """Guards one process. `stop` may be called from any thread and from a signal handler; the first cause counts."""

    def __init__(self, process: ServerAppProcess, lifeline: Lifeline, sink: Sink, *, limit: float | None) -> None:
        self._process = process
        self._lifeline = lifeline
        self._sink = sink
        self._output = Output(process.output)
        self._deadline = None if limit is None else time.monotonic() + limit
        self._farewell: float | None = None
        self._cause: Cause | None = None
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        for readable, act in (
            (self._wake_read, lambda: os.read(self._wake_read, 4096)),
            (lifeline.fileno(), lambda: self.stop(Cause.SHUTDOWN)),
            (process.report, self._read_report),
            (process.output, self._read_output),
        ):
            self._selector.register(readable, selectors.EVENT_READ, act)

    def stop(self, cause: Cause) -> None:
        """Have the process end, for a cause from outside."""
        self._cause = self._cause or cause
        with suppress(OSError):  # full: it wakes anyway; closed: it is over
            os.write(self._wake_write, b"!")

    def watch(self) -> Cause:
        """Return why the process is gone, when it is gone and all of its output has been read."""
        while self._cause is None and not self._process.ended():
            self._serve(self._pause())
            self._look_at_clock()
        if not self._process.ended():
            self._end()
        self._process.signal(signal.SIGKILL)  # what it left behind
        while not self._output.ended and (lines := self._output.read()):
            self._sink.write(lines)
        return self._cause or Cause.ITSELF

    def close(self) -> None:
        """Give back what the guard holds."""
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _end(self) -> None:
        with suppress(KeyError):
            self._selector.unregister(self._lifeline.fileno())  # it stays readable
        if self._cause is not Cause.FENCED:
            self._process.signal(signal.SIGTERM)
            deadline = time.monotonic() + GRACE_SECONDS
            while not self._process.ended() and time.monotonic() < deadline:
                self._serve(_SHORT_TICK_SECONDS)
        self._process.signal(signal.SIGKILL)
        while not self._process.ended():
            self._serve(_SHORT_TICK_SECONDS)

    def _serve(self, seconds: float) -> None:
        self._listen_to_output()
        for key, _ in self._selector.select(seconds):
            key.data()

    def _listen_to_output(self) -> None:
        """Leave the output in its pipe while the sink is full: the app waits in its next print."""
        wanted = not self._output.ended and not self._sink.is_full()
        if wanted == (self._process.output in self._selector.get_map()):
            return
        if wanted:
            self._selector.register(self._process.output, selectors.EVENT_READ, self._read_output)
        else:
            self._selector.unregister(self._process.output)

    def _read_output(self) -> None:
        self._sink.write(self._output.read())

    def _read_report(self) -> None:
        if self._process.read_report():  # the process is about to end
            self._selector.unregister(self._process.report)
            self._farewell = time.monotonic() + FAREWELL_SECONDS

    def _pause(self) -> float:
        if self._farewell is not None:  # it is about to end, or held up for longer
            left = self._farewell - time.monotonic()
            return _SHORT_TICK_SECONDS if left > FAREWELL_SECONDS - _TICK_SECONDS else _TICK_SECONDS / 5
        if self._deadline is None:
            return _TICK_SECONDS
        return max(0.0, min(_TICK_SECONDS, self._deadline - time.monotonic()))

    def _look_at_clock(self) -> None:
        now = time.monotonic()
        if self._deadline is not None and now >= self._deadline:
            self.stop(Cause.OVERDUE)
        elif self._farewell is not None and now >= self._farewell:
            self._process.signal(signal.SIGKILL)
