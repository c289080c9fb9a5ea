"""Two threads that only talk to the SuperLink: one says that this process lives, one waits to be woken."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from random import Random

from flq.errors import LinkError, Superseded
from flq.node.outage import Backoff, Outage
from flq.wire.fleet import HEARTBEAT_SECONDS, Fleet, Wake

_JITTER = Random()  # noqa: S311 - spreads the load. The global generator is the app's: its draws must not shift

POLL_SECONDS = (3.0, 5.0)
"""A wait that nothing ends is over after a time in this range: the safety net for a lost notification."""


class Heartbeat:
    """Says once a second that this process lives. Its beats wait for nothing else.

    `superseded` is called, once, if another process hosts the nodes, `forgotten` each time that the SuperLink does not
    know this one.
    """

    def __init__(
        self, fleet: Fleet, outage: Outage, *, superseded: Callable[[], None], forgotten: Callable[[], None]
    ) -> None:
        self._fleet = fleet
        self._outage = outage
        self._superseded = superseded
        self._forgotten = forgotten
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="flq-heartbeat", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the beat that is under way."""
        self._stop.set()

    def _work(self) -> None:
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                self._fleet.heartbeat()
            except Superseded:
                self._superseded()
                return
            except LinkError:
                self._outage.succeeded()
                self._forgotten()
            except Exception as exc:  # noqa: BLE001 - told by `Outage`; the next beat tries again
                self._outage.failed(exc, what="the heartbeat")
            else:
                self._outage.succeeded()
            self._stop.wait(max(0.0, started + HEARTBEAT_SECONDS - time.monotonic()))


class Waiter:
    """Blocks in `Fleet.wait` and tells `woken` why each wait has ended."""

    def __init__(self, fleet: Fleet, outage: Outage, woken: Callable[[Wake], None]) -> None:
        self._fleet = fleet
        self._outage = outage
        self._woken = woken
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="flq-wait", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the wait that is under way."""
        self._stop.set()

    def _work(self) -> None:
        backoff = Backoff()
        missed = False
        while not self._stop.is_set():
            try:
                wake = self._fleet.wait(_JITTER.uniform(*POLL_SECONDS))
            except Exception as exc:  # noqa: BLE001 - told by `Outage`; the next wait tries again
                self._outage.failed(exc, what="waiting for tasks")
                missed = True  # nobody knows what: look at everything
                self._stop.wait(backoff.next())
            else:
                self._outage.succeeded()
                backoff.reset()
                self._woken(Wake(tasks=True, runs=True) if missed else wake)
                missed = False
