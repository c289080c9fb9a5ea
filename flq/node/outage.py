"""Outages of the SuperLink: told once when they begin and once when they end, with a wait that grows in between."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from random import Random

from flq.errors import FlqError, Unreachable
from flq.log import get

_JITTER = Random()  # noqa: S311 - spreads the load. The global generator is the app's: its draws must not shift

log = get(__name__)

FIRST_WAIT = 0.1
LONGEST_WAIT = 5.0


class Outage:
    """Shared by everything that calls the Fleet. Safe to use from any thread.

    `over` is called from the thread whose call was the first to succeed after an outage.
    """

    def __init__(self, over: Callable[[], None] | None = None) -> None:
        self._over = over
        self._lock = threading.Lock()
        self._since: float | None = None

    def ongoing(self) -> bool:
        """Whether the last that was heard of the SuperLink is that it cannot be reached."""
        return self._since is not None

    def failed(self, exc: Exception, *, what: str) -> None:
        """Note that a call failed. An outage is logged once; any other error is a surprise and is logged each time."""
        if not isinstance(exc, Unreachable):
            log.error("%s failed: %s", what, exc, exc_info=None if isinstance(exc, FlqError) else exc)
            return
        with self._lock:
            first, self._since = self._since is None, self._since or time.monotonic()
        if first:
            log.warning("the SuperLink cannot be reached, trying again until it can: %s", exc)

    def succeeded(self) -> None:
        """Note that a call went well."""
        if not self.ongoing():
            return
        with self._lock:
            since, self._since = self._since, None
        if not since:
            return  # another thread was quicker
        log.info("the SuperLink is reachable again after %.1f s", time.monotonic() - since)
        if self._over is not None:
            self._over()


class Backoff:
    """How long to wait before the next try: doubles from 0.1 s to 5 s, with jitter."""

    def __init__(self) -> None:
        self._wait = FIRST_WAIT

    @property
    def fresh(self) -> bool:
        """Whether nothing has failed since it was made or reset."""
        return self._wait == FIRST_WAIT

    def next(self) -> float:
        """Seconds to wait after one more failure."""
        wait, self._wait = self._wait, min(self._wait * 2, LONGEST_WAIT)
        return wait * _JITTER.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Start anew after a success."""
        self._wait = FIRST_WAIT
