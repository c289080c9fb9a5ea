"""Confirms stops: tells the SuperLink when the last process of a stopped run has ended, for each node that had some."""

from __future__ import annotations

from collections.abc import Callable, Collection

from flq.node.lane import Lane
from flq.node.outage import Backoff, Outage
from flq.node.reactor import Reactor
from flq.wire.fleet import Fleet
from flq.wire.ids import NodeId, RunId


class Confirmer:
    """Keeps in mind which nodes have worked for which run. `working` names the runs that have a process."""

    def __init__(
        self, fleet: Fleet, reactor: Reactor, outage: Outage, *, working: Callable[[], Collection[RunId]]
    ) -> None:
        self._fleet = fleet
        self._reactor = reactor
        self._outage = outage
        self._working = working
        self._lane = Lane("flq-confirm", reactor)
        self._backoff = Backoff()
        self._nodes: dict[RunId, set[NodeId]] = {}
        self._ended: set[RunId] = set()

    @property
    def runs(self) -> set[RunId]:
        """The runs whose end is not known yet."""
        return self._nodes.keys() - self._ended

    def worked(self, run_id: RunId, node_id: NodeId) -> None:
        """Note that a process begins to work for a run on behalf of a node."""
        self._nodes.setdefault(run_id, set()).add(node_id)
        self._ended.discard(run_id)  # it was resumed

    def ended(self, run_id: RunId) -> None:
        """The run has ended: its nodes are told of as soon as it has no process any more."""
        if run_id in self._nodes:
            self._ended.add(run_id)
            self.look()

    def look(self) -> None:
        """Confirm what can be: a process has ended."""
        gone = self._ended.difference(self._working())
        self._ended -= gone
        pairs = [(run_id, node_id) for run_id in sorted(gone) for node_id in sorted(self._nodes.pop(run_id))]
        if pairs:
            self._confirm(pairs)

    def close(self) -> None:
        """End the thread."""
        self._lane.close()

    def _confirm(self, pairs: list[tuple[RunId, NodeId]]) -> None:
        def done(_nothing: None) -> None:
            self._outage.succeeded()
            self._backoff.reset()

        def failed(exc: Exception) -> None:
            self._outage.failed(exc, what="confirming that runs have ended")
            self._reactor.after(self._backoff.next(), lambda: self._confirm(pairs))

        self._lane.call(lambda: self._fleet.confirm_ended(pairs), done=done, failed=failed)
