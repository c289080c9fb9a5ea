"""Lanes: threads that call the Fleet, so that the main loop never waits for the SuperLink."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from flq.node.reactor import Reactor

T = TypeVar("T")


class Lane:
    """Does calls one after the other (or `threads` at a time) and brings the outcome back to the main loop.

    The threads are daemons: a call that hangs in a dead network does not keep the process from ending.
    """

    def __init__(self, name: str, reactor: Reactor, *, threads: int = 1) -> None:
        self._name = name
        self._reactor = reactor
        self._threads = threads
        self._started = 0
        self._waiting = 0
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def call(self, work: Callable[[], T], *, done: Callable[[T], None], failed: Callable[[Exception], None]) -> None:
        """Do `work` in the lane; `done` or `failed` is called on the main loop's thread."""

        def step() -> None:
            try:
                result = work()
            except Exception as exc:  # noqa: BLE001 - whatever it is, the main loop decides what follows
                error = exc
                self._reactor.post(lambda: self._finish(failed, error))
            else:
                self._reactor.post(lambda: self._finish(done, result))

        self._waiting += 1
        if self._started < min(self._threads, self._waiting):
            self._started += 1
            threading.Thread(target=self._work, name=f"{self._name}-{self._started}", daemon=True).start()
        self._calls.put(step)

    @property
    def busy(self) -> bool:
        """Whether a call is waiting or under way."""
        return self._waiting > 0

    def _finish(self, callback: Callable[[T], None], outcome: T) -> None:
        self._waiting -= 1
        callback(outcome)

    def close(self) -> None:
        """End the threads once they are free."""
        for _ in range(self._started):
            self._calls.put(_leave)

    def _work(self) -> None:
        while True:
            step = self._calls.get()
            if step is _leave:
                return
            step()


def _leave() -> None:
    """Marks the end of a lane."""
