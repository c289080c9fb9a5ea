"""The main loop: one thread that owns all of a SuperNode's state and never blocks on anything but its selector."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import selectors
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import FrameType

Action = Callable[[], None]

SWEEP_TIMERS = 1024
"""Every so many timers, those that were cancelled are forgotten."""


class Timer:
    """An action that is due at a time, unless it is cancelled."""

    __slots__ = ("action", "due")

    def __init__(self, due: float, action: Action) -> None:
        self.due = due
        self.action: Action | None = action

    def cancel(self) -> None:
        """Forget the action. Cancelling twice, or after the action ran, does nothing."""
        self.action = None


class Reactor:
    """Runs actions: when a descriptor is ready, when a time has come, or when another thread asks for one.

    Everything but `post` is for the loop's own thread.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._posted: deque[Action] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = itertools.count()
        self._awake = False
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._selector.register(self._reader, selectors.EVENT_READ, self._read_wake_pipe)

    def post(self, action: Action) -> None:
        """Run `action` on the loop's thread, soon. May be called from any thread and from signal handlers."""
        self._posted.append(action)
        if not self._awake:
            self._awake = True
            # A full pipe wakes the loop just as well; a closed one has no loop to wake.
            with contextlib.suppress(OSError):
                os.write(self._writer, b"\0")

    def after(self, seconds: float, action: Action) -> Timer:
        """Run `action` in `seconds`, unless the returned timer is cancelled before."""
        timer = Timer(time.monotonic() + seconds, action)
        number = next(self._count)
        heapq.heappush(self._timers, (timer.due, number, timer))
        if not number % SWEEP_TIMERS:
            # Most timers are deadlines hours away that are cancelled within seconds.
            self._timers = [entry for entry in self._timers if entry[2].action is not None]
            heapq.heapify(self._timers)
        return timer

    def watch(self, descriptor: int, events: int, action: Callable[[int], None]) -> None:
        """Call `action` with the ready events whenever `descriptor` is ready; replaces an earlier watch."""
        if descriptor in self._selector.get_map():
            self._selector.modify(descriptor, events, action)
        else:
            self._selector.register(descriptor, events, action)

    def unwatch(self, descriptor: int) -> None:
        """Stop watching `descriptor`; nothing happens if it is not watched."""
        with contextlib.suppress(KeyError):
            self._selector.unregister(descriptor)

    def run(self, *, each: Action, until: Callable[[], bool]) -> None:
        """Run the loop until `until` says so, with one call of `each` after every batch of actions."""
        while not until():
            for key, events in self._selector.select(self._patience()):
                # An action before this one may have closed the descriptor.
                if self._selector.get_map().get(key.fd) == key:
                    key.data(events)
            self._run_posted()
            self._run_timers()
            each()

    def close(self) -> None:
        """Give back the descriptors. What is posted from now on is never run."""
        self._awake = True
        self._selector.close()
        os.close(self._reader)
        os.close(self._writer)

    @contextlib.contextmanager
    def signals(self, handler: Callable[[int], None], *signals: signal.Signals) -> Iterator[None]:
        """Turn `signals` into actions while the context lasts. Does nothing outside of the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def caught(number: int, _frame: FrameType | None) -> None:
            self.post(lambda: handler(number))

        # The wake-up descriptor is what makes `select` return: Python's handler runs only once it has.
        former_fd = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        former = {number: signal.signal(number, caught) for number in signals}
        try:
            yield
        finally:
            for number, action in former.items():
                signal.signal(number, action)
            signal.set_wakeup_fd(former_fd)

    def _patience(self) -> float | None:
        if self._posted:
            return 0.0
        while self._timers and self._timers[0][2].action is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return None
        return max(0.0, self._timers[0][0] - time.monotonic())

    def _read_wake_pipe(self, _events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._reader, 4096):
                pass

    def _run_posted(self) -> None:
        self._awake = False  # before the queue is read: what is posted from here on wakes the loop again
        for _ in range(len(self._posted)):
            self._posted.popleft()()

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            action, timer.action = timer.action, None
            if action is not None:
                action()
