"""Keeps what is ours, and notices what no longer is: renews leases, asks which runs have ended, gives tasks back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from flq.errors import Superseded
from flq.node.lane import Lane
from flq.node.outage import Backoff, Outage
from flq.node.reactor import Reactor, Timer
from flq.wire.fleet import LEASE_SECONDS, Fleet, Renewed, TaskKey
from flq.wire.ids import RunId

RENEW_SECONDS = LEASE_SECONDS / 2

HeldKeys = Callable[[], Sequence[TaskKey]]
Lost = Callable[[Sequence[TaskKey], Renewed], None]
Answered = Callable[[Collection[RunId], frozenset[RunId]], None]


class Keeper:
    """`keys` says which leases to renew; `lost` and `answered` are told what was asked, and the answer."""

    def __init__(
        self, fleet: Fleet, reactor: Reactor, outage: Outage, *, keys: HeldKeys, lost: Lost, answered: Answered
    ) -> None:
        self._fleet = fleet
        self._reactor = reactor
        self._outage = outage
        self._keys = keys
        self._lost = lost
        self._answered = answered
        self._lane = Lane("flq-keep", reactor)
        self._backoff = Backoff()
        self._timer: Timer | None = None
        self._asking: set[RunId] = set()
        self._ask_again: set[RunId] = set()

    @property
    def busy(self) -> bool:
        """Whether a call is waiting or under way."""
        return self._lane.busy

    def holds_something(self) -> None:
        """Tasks are held: see to it that their leases are renewed at half-life."""
        if self._timer is None:
            self._timer = self._reactor.after(RENEW_SECONDS, self._renew)

    def ask(self, runs: Collection[RunId]) -> None:
        """Find out which of `runs` have ended; `answered` is called once it is known."""
        if self._asking:
            self._ask_again.update(runs)  # one answer at a time, and a fresh one for what came later
        elif runs:
            self._asking = set(runs)
            self._call_ended()

    def release(self, keys: Sequence[TaskKey]) -> None:
        """Give tasks back. If that fails their leases run out, or this node's next process takes them."""
        if keys:
            self._lane.call(lambda: self._fleet.release(keys), done=_ignore, failed=self._not_released)

    def close(self) -> None:
        """End the thread."""
        self._lane.close()

    def _renew(self) -> None:
        self._timer = None
        keys = self._keys()
        if not keys:
            return

        def done(renewed: Renewed) -> None:
            self._outage.succeeded()
            self._backoff.reset()
            self._timer = None
            self.holds_something()
            self._lost(keys, renewed)

        def failed(exc: Exception) -> None:
            if isinstance(exc, Superseded):
                self._lost(keys, Renewed(frozenset(), superseded=frozenset(key.node_id for key in keys)))
                return
            self._outage.failed(exc, what="renewing leases")
            self._timer = self._reactor.after(self._backoff.next(), self._renew)

        # Marks that a renewal is under way: nothing else arms the timer until it is over.
        self._timer = Timer(0.0, _nothing)
        self._lane.call(lambda: self._fleet.renew(keys), done=done, failed=failed)

    def _call_ended(self) -> None:
        asked = frozenset(self._asking)

        def done(ended: frozenset[RunId]) -> None:
            self._outage.succeeded()
            self._asking = set()
            again, self._ask_again = self._ask_again, set()
            self._answered(asked, ended)
            self.ask(again)

        def failed(exc: Exception) -> None:
            self._outage.failed(exc, what="asking which runs have ended")
            self._asking |= self._ask_again
            self._ask_again = set()
            self._reactor.after(self._backoff.next(), self._call_ended)

        self._lane.call(lambda: self._fleet.ended(asked), done=done, failed=failed)

    def _not_released(self, exc: Exception) -> None:
        self._outage.failed(exc, what="giving tasks back")


def _ignore(_outcome: None) -> None:
    """There is nothing to do about it."""


def _nothing() -> None:
    """Never due."""
