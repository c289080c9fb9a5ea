"""What strategies need of a Grid: four methods, and more where the run is to survive a restart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from flq.apps.grid import SavedRound, Training
from flq.wire.array import Array
from flq.wire.grid import GridNode
from flq.wire.message import Message
from flq.wire.records import ConfigRecord, RecordDict


class MessageGrid(Protocol):
    """Sends messages and receives replies: all that a strategy must have, so that apps can be tested without flq."""

    def get_node_ids(self) -> Iterable[int]:
        """The nodes that are online."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str | None]:
        """Send messages; their ids."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that have come in."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and wait for their replies."""


@runtime_checkable
class DurableGrid(Protocol):
    """Records rounds, so that another attempt of the run goes on behind the last one."""

    def begin_training(self, rounds: int) -> Training:
        """A training of so many rounds begins."""

    def commit_round(self, server_round: int, content: RecordDict, metrics: Mapping[str, float]) -> None:
        """Record a finished round."""

    def stored(self, array: Array) -> Array:
        """An array of a commit, an object of its own, without its bytes: they are read when they are touched."""

    def last_checkpoint(self) -> SavedRound | None:
        """The newest committed round of the run."""

    def continue_at(self, position: ConfigRecord) -> None:
        """Go on as the attempt did that made the commit which `position` is of."""

    def record_metrics(self, server_round: int, metrics: Mapping[str, float]) -> None:
        """Record named numbers of a round."""


@runtime_checkable
class FirstRepliesGrid(Protocol):
    """Can stop waiting when enough replies have come in."""

    def first_replies(self, messages: Iterable[Message], *, enough: int, timeout: float | None) -> Iterable[Message]:
        """Send messages and wait for so many replies without an error; what is still open then is cancelled."""


@runtime_checkable
class NamingGrid(Protocol):
    """Knows the names of the nodes, which are more to people than their ids."""

    def get_nodes(self) -> Sequence[GridNode]:
        """The nodes that are online."""


@runtime_checkable
class WaitingGrid(Protocol):
    """Can wait without asking again and again."""

    def wait(self, seconds: float) -> None:
        """Return when something may have happened, or after `seconds`."""
