"""What to claim, for which nodes, and when. Pure bookkeeping, like the scheduler.

A wake-up, a poll or the end of an outage makes every node hungry. A node stops being hungry when a claim has
brought less than it could have: then there was no more, and what is pushed later wakes us again (the waiter is
registered before the claim). So a quiet SuperNode claims nothing, and a busy one claims again whenever less than
half of what it wants to have at hand is left.

A wake-up is followed at once by a claim for every node, however much is at hand: nobody else could do these tasks
meanwhile, and what is new may be of another run, which the claim deals its share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from flq.wire.fleet import Claimed
from flq.wire.ids import NodeId

FIRST_PER_SLOT = 8
FIRST_AT_LEAST = 64
LEAST_PER_SLOT = 4
MOST = 512
HORIZON_SECONDS = 1.0

LEAST_PER_NODE = 2
"""A run usually has one task for a node. Asked for two, a node that brings one has no more."""

SPARE_PER_NODE = 4
"""So many tasks beyond its share a node may come to hold by wake-ups: those of other runs, usually."""


class Pace:
    """How many tasks to keep at hand: about a second's work.

    Tasks that take milliseconds need a long queue, or the claims eat the time; tasks that take minutes need a short
    one, or a run that starts later finds this SuperNode's queue full.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._mean: float | None = None

    def took(self, seconds: float) -> None:
        """Note how long a worker had one task."""
        self._mean = seconds if self._mean is None else 0.8 * self._mean + 0.2 * seconds

    @property
    def capacity(self) -> int:
        """How many unstarted tasks to hold at most."""
        if self._mean is None:
            return max(FIRST_PER_SLOT * self._slots, FIRST_AT_LEAST)
        wanted = round(self._slots * HORIZON_SECONDS / max(self._mean, 1e-4))
        least = LEAST_PER_SLOT * self._slots
        return min(max(wanted, least), max(MOST, least))


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """One call of `Fleet.claim`, but for the token."""

    nodes: tuple[NodeId, ...]
    per_node: int
    total: int


class ClaimPlan:
    """Which hosted nodes may have more to do."""

    def __init__(self) -> None:
        self._nodes: dict[NodeId, None] = {}
        self._hungry: dict[NodeId, None] = {}
        self._woken = False

    def host(self, nodes: Iterable[NodeId]) -> None:
        """Claim for these nodes."""
        self._nodes = dict.fromkeys(nodes)
        self.wake()

    def wake(self) -> None:
        """There may be something for every node."""
        self._hungry = dict.fromkeys(self._nodes)
        self._woken = True

    def drop(self, nodes: Iterable[NodeId]) -> None:
        """Claim no more for these nodes."""
        for node_id in nodes:
            self._nodes.pop(node_id, None)
            self._hungry.pop(node_id, None)

    def request(self, *, capacity: int, backlog: int, held_by: Callable[[NodeId], int]) -> ClaimRequest | None:
        """What to claim now: None if no node is hungry, or if there is enough at hand and nothing new."""
        woken, self._woken = self._woken, False
        room = capacity - backlog
        if not self._hungry or (room * 2 < capacity and not woken):
            return None
        share = max(LEAST_PER_NODE, -(-capacity // len(self._nodes)))
        most = share + SPARE_PER_NODE if woken else share
        held = {node_id: count for node_id in self._hungry if (count := held_by(node_id)) < most}
        if not held:
            return None
        total = max(room, sum(max(1, share - count) for count in held.values())) if woken else room
        return ClaimRequest(tuple(held), per_node=share, total=total)

    def brought(self, request: ClaimRequest, claimed: Claimed) -> None:
        """Learn from a claim. Not for a node that was woken in the meantime: call `wake` after this, not before."""
        if len(claimed.leases) >= request.total:
            return  # the total cut it off, so nothing is known of any node
        brought: dict[NodeId, int] = {}
        for lease in claimed.leases:
            brought[lease.key.node_id] = brought.get(lease.key.node_id, 0) + 1
        for node_id in request.nodes:
            if brought.get(node_id, 0) < request.per_node:
                self._hungry.pop(node_id, None)
