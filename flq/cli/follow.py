"""Following a run: asks the federation again and again, and tells a view what is new."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from flq.cli.output import note
from flq.errors import Interrupted, TimeoutPassed, Unreachable
from flq.wire.control import Control
from flq.wire.runs import FeedCursor, LogLine, RoundRow, RunRow
from flq.wire.status import RunStatus

LOOK_SECONDS = 0.2
"""How often to look for new output, which nobody announces."""

LEAST_SECONDS = 0.04
"""Between two looks, however much is announced."""

LOOKING_SHARE = 0.1
"""Which part of the time goes into looking at most: a look at a long run takes longer, and must not slow it down."""

WAIT_SECONDS = 1.0
OUTAGE_SECONDS = 120.0
"""How long to wait for a federation that has gone away: its processes are restarted, and the run goes on."""

_PATIENT_SECONDS = 1.5
"""A run that has not begun by then is said to wait, with the reason."""


class View(Protocol):
    """Shows a run to somebody."""

    def lines(self, lines: Sequence[LogLine]) -> None:
        """New lines of the log."""

    def rounds(self, run: RunRow, rounds: Sequence[RoundRow]) -> None:
        """The rounds as they stand."""

    def waiting(self, reason: str) -> None:
        """The run does not begin, for this reason."""


@contextmanager
def interruption(while_: str, *, hint: str | None = None) -> Iterator[None]:
    """Say what Ctrl-C has ended, and what it has not. Raises `Interrupted`."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted {while_}", hint=hint) from None


def follow(door: Control, run: str, view: View, *, timeout: float | None, rounds: bool = True) -> RunRow:
    """Show a run until it is finished; returns how it ended. Raises `TimeoutPassed`, the run goes on then."""
    watch = _Watch(run, timeout)
    cursor = FeedCursor()
    since = 1
    while True:
        try:
            row = door.run(run)  # before the log: what a finished run has printed is there by then
            cursor = _show_log(door, run, cursor, view)
            if rounds:
                # at the end all of them, should one have come behind a later one
                found = door.rounds(run, since=1 if row.status is RunStatus.FINISHED else since)
                view.rounds(row, found)
                since = _first_open(found, since)
            if row.status is RunStatus.FINISHED:
                return row
            if row.running_at is None and watch.is_long() and (causes := door.waiting(run)):
                view.waiting(causes[0].reason)
            watch.check()
            watch.pause(door, LOOK_SECONDS)
        except Unreachable as exc:
            watch.bear(exc)


def wait(door: Control, run: str, *, timeout: float | None) -> RunRow:
    """Wait until a run is finished; returns how it ended. Raises `TimeoutPassed`, the run goes on then."""
    watch = _Watch(run, timeout)
    while True:
        try:
            if door.finished(run) and (row := door.run(run)).status is RunStatus.FINISHED:
                return row
            watch.check()
            watch.pause(door, WAIT_SECONDS)
        except Unreachable as exc:
            watch.bear(exc)


class _Watch:
    def __init__(self, run: str, timeout: float | None) -> None:
        self._run = run
        self._timeout = timeout
        self._begun = time.monotonic()
        self._looking_since = math.inf  # the first look, which connects, says nothing of those to come
        self._lost_at: float | None = None

    def check(self) -> None:
        self._lost_at = None
        if self._timeout is not None and time.monotonic() - self._begun >= self._timeout:
            raise TimeoutPassed(
                f"{self._run} is not finished after {self._timeout:g} s; it goes on", hint=f"flq logs -f {self._run}"
            )

    def is_long(self) -> bool:
        return time.monotonic() - self._begun > _PATIENT_SECONDS

    def pause(self, door: Control, seconds: float) -> None:
        looked = time.monotonic()
        least = max(LEAST_SECONDS, (looked - self._looking_since) * (1 / LOOKING_SHARE - 1))
        left = math.inf if self._timeout is None else max(0.0, self._begun + self._timeout - looked)
        door.wait(min(seconds, left))
        time.sleep(max(0.0, looked + min(least, left) - time.monotonic()))
        self._looking_since = time.monotonic()

    def bear(self, exc: Unreachable) -> None:
        now = time.monotonic()
        if self._lost_at is None:
            self._lost_at = now
            note(f"{exc.message}; waiting for it")
        if now - self._lost_at > OUTAGE_SECONDS:
            raise exc
        time.sleep(LOOK_SECONDS)


def _first_open(rounds: Sequence[RoundRow], since: int) -> int:
    """The first round that is still at work, or the next one."""
    for found in rounds:
        if found.status == "running":
            return found.round
        since = found.round + 1
    return since


def _show_log(door: Control, run: str, cursor: FeedCursor, view: View) -> FeedCursor:
    while (page := door.logs(run, cursor)).lines:
        view.lines(page.lines)
        cursor = page.cursor
    return page.cursor
