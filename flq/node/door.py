"""The SuperNode's way in and out: it introduces itself, settles what an earlier process has left, and says goodbye."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flq.errors import FlqError, Unreachable
from flq.log import get
from flq.node.lane import Lane
from flq.node.outage import Backoff, Outage
from flq.node.reactor import Reactor
from flq.node.state import ClientStates
from flq.wire.fleet import Fleet, HostedNode, NodeSpec, Reply
from flq.wire.runs import ProcessSpec
from flq.wire.status import Verdict

log = get(__name__)

Hosted = Callable[[list[HostedNode]], None]


class Door:
    """Connects one process, as often as need be."""

    def __init__(self, fleet: Fleet, reactor: Reactor, outage: Outage, process: ProcessSpec) -> None:
        self._fleet = fleet
        self._reactor = reactor
        self._outage = outage
        self._process = process
        self._lane = Lane("flq-door", reactor)
        self._connecting = False
        self._stopped = False

    @property
    def connecting(self) -> bool:
        """Whether the answer to `connect` is still to come."""
        return self._connecting

    def connect(self, specs: Sequence[NodeSpec], connected: Hosted) -> None:
        """Connect, or connect again; `connected` is called with the nodes, in the order of `specs`.

        Tried again while the SuperLink cannot be reached; what else goes wrong ends the SuperNode.
        """
        self._connecting = True
        self._connect(specs, connected, Backoff())

    def settle(self, states: ClientStates, settled: Callable[[], None]) -> None:
        """Hand in what an earlier process may or may not have handed in, then call `settled`."""
        self._settle(states, settled, Backoff())

    def say_goodbye(self, over: Callable[[], None]) -> None:
        """Disconnect; `over` is called when it is done, or has failed."""
        self._lane.call(self._fleet.disconnect, done=lambda _nothing: over(), failed=lambda _exc: over())

    def stop(self) -> None:
        """Try nothing again."""
        self._stopped = True

    def close(self) -> None:
        """End the thread."""
        self._lane.close()

    def _connect(self, specs: Sequence[NodeSpec], connected: Hosted, backoff: Backoff) -> None:
        if self._stopped:
            return

        def done(hosted: list[HostedNode]) -> None:
            self._connecting = False
            self._outage.succeeded()
            connected(hosted)

        def failed(exc: Exception) -> None:
            if not isinstance(exc, Unreachable):
                raise exc
            self._outage.failed(exc, what="connecting")
            self._reactor.after(backoff.next(), lambda: self._connect(specs, connected, backoff))

        self._lane.call(lambda: self._fleet.connect(self._process, specs), done=done, failed=failed)

    def _settle(self, states: ClientStates, settled: Callable[[], None], backoff: Backoff) -> None:
        if self._stopped:
            return
        unsettled = states.unsettled()
        if not unsettled:
            settled()
            return

        def done(verdicts: list[Verdict]) -> None:
            for (staged, _reply), verdict in zip(unsettled, verdicts, strict=True):
                if verdict is Verdict.FENCED:
                    states.drop(staged)
                else:
                    states.promote(staged)
            settled()

        def failed(exc: Exception) -> None:
            self._outage.failed(exc, what="handing in earlier results")
            self._reactor.after(backoff.next(), lambda: self._settle(states, settled, backoff))

        replies = [reply for _staged, reply in unsettled]
        self._lane.call(lambda: submit_one_by_one(self._fleet, replies), done=done, failed=failed)


def submit_one_by_one(fleet: Fleet, replies: Sequence[Reply]) -> list[Verdict]:
    """Submit each reply by itself; one that is refused counts as fenced. Raises `Unreachable`."""
    verdicts = []
    for reply in replies:
        try:
            verdict = fleet.submit([reply]).get(reply.key.task_id, Verdict.FENCED)
        except Unreachable:
            raise
        except FlqError as exc:
            log.warning("an earlier result was refused: %s", exc)
            verdict = Verdict.FENCED
        verdicts.append(verdict)
    return verdicts
