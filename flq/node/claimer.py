"""Claims tasks when there may be some and there is room for them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

from flq.errors import Superseded, Unreachable
from flq.node.claims import ClaimPlan, ClaimRequest
from flq.node.lane import Lane
from flq.node.outage import Backoff, Outage
from flq.node.reactor import Reactor
from flq.wire.fleet import Claimed, Fleet
from flq.wire.ids import FENCE_BITS, NodeId

MakeRequest = Callable[[ClaimPlan], ClaimRequest | None]
Brought = Callable[[Claimed], None]


class Claimer:
    """One claim at a time. A claim of which nobody knows whether it went through is repeated with its token."""

    def __init__(
        self, fleet: Fleet, reactor: Reactor, outage: Outage, plan: ClaimPlan, *, make: MakeRequest, brought: Brought
    ) -> None:
        self._fleet = fleet
        self._reactor = reactor
        self._outage = outage
        self._plan = plan
        self._make = make
        self._brought = brought
        self._lane = Lane("flq-claim", reactor)
        self._backoff = Backoff()
        self._not_before = 0.0
        self._unsure: tuple[ClaimRequest, int] | None = None
        self._woken = False
        self._stopped = False

    @property
    def busy(self) -> bool:
        """Whether a claim is under way."""
        return self._lane.busy

    def wake(self) -> None:
        """There may be something to claim for every node."""
        self._woken = True  # a claim that is under way may have looked too early
        self._plan.wake()

    def recovered(self) -> None:
        """The SuperLink is reachable again: do not wait for the next try, and look in full."""
        self._not_before = 0.0
        self.wake()

    def stop(self) -> None:
        """Claim no more. What a claim that is under way brings is still handed over."""
        self._stopped = True

    def close(self) -> None:
        """End the thread."""
        self._lane.close()

    def step(self) -> None:
        """Claim, if there is reason to."""
        if self._stopped or self._lane.busy or time.monotonic() < self._not_before:
            return
        unsure, self._unsure = self._unsure, None
        if unsure is not None:
            request, token = unsure
        else:
            made = self._make(self._plan)
            if made is None:
                return
            request, token = made, secrets.randbits(FENCE_BITS) or 1
        self._woken = False
        self._call(request, token)

    def _call(self, request: ClaimRequest, token: int) -> None:
        def done(claimed: Claimed) -> None:
            self._outage.succeeded()
            self._backoff.reset()
            self._plan.brought(request, claimed)
            if self._woken:
                self._plan.wake()
            self._brought(claimed)

        def failed(exc: Exception) -> None:
            if isinstance(exc, Superseded):
                self._brought(Claimed((), superseded=frozenset(request.nodes)))
                return
            self._outage.failed(exc, what="claiming tasks")
            if isinstance(exc, Unreachable):
                self._unsure = request, token
            wait = self._backoff.next()
            self._not_before = time.monotonic() + wait
            self._reactor.after(wait, _nothing)  # makes the loop turn, and with it `step`

        nodes: tuple[NodeId, ...] = request.nodes
        self._lane.call(
            lambda: self._fleet.claim(nodes, per_node=request.per_node, total=request.total, token=token),
            done=done,
            failed=failed,
        )


def _nothing() -> None:
    """Due is enough."""
