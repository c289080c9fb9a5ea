"""Removes versions of the client state that nothing will start from any more: the store says which ones these are."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flq.node.lane import Lane
from flq.node.outage import Outage
from flq.node.reactor import Reactor, Timer
from flq.node.state import ClientStates
from flq.wire.fleet import Fleet, StateVersion
from flq.wire.ids import NodeId

TRIM_SECONDS = 60.0
"""How often the store is asked, at least while there is something to ask about."""

ENOUGH = 1000
"""So many new versions to ask about are not left waiting."""

MOST_AT_ONCE = 4096

Hosted = Callable[[], Mapping[str, NodeId]]


class Trimmer:
    """One question at a time. An answer that is lost is asked for again with the next one."""

    def __init__(self, fleet: Fleet, reactor: Reactor, outage: Outage, *, states: ClientStates, hosted: Hosted) -> None:
        self._fleet = fleet
        self._reactor = reactor
        self._outage = outage
        self._states = states
        self._hosted = hosted
        self._lane = Lane("flq-trim", reactor)
        self._timer: Timer | None = None

    def start(self) -> None:
        """Ask now, and every minute from now on."""
        self._timer = self._reactor.after(TRIM_SECONDS, self.start)
        self._trim()

    def promoted(self) -> None:
        """There is a new version: see whether there are enough to ask about."""
        if self._states.unasked >= ENOUGH and self._timer is not None:
            self._trim()

    def close(self) -> None:
        """End the thread."""
        self._lane.close()

    def _trim(self) -> None:
        if self._lane.busy:
            return
        hosted = self._hosted()
        asked = {
            StateVersion(run_id=found.run_id, node_id=hosted[found.node_name], task_id=found.task_id): found
            for found in self._states.spare(MOST_AT_ONCE)
            if found.node_name in hosted  # else another process hosts the node now
        }
        if not asked:
            return

        def done(unneeded: frozenset[StateVersion]) -> None:
            self._outage.succeeded()
            self._states.remove(asked[version] for version in unneeded)
            self._states.keep(found for version, found in asked.items() if version not in unneeded)
            if self._states.unasked >= ENOUGH:
                self._trim()

        def failed(exc: Exception) -> None:
            self._outage.failed(exc, what="asking which client state is needed")
            self._states.keep(asked.values())

        self._lane.call(lambda: self._fleet.unneeded_states(asked.keys()), done=done, failed=failed)
