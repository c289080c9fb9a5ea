"""What a ServerApp is given: recorded with its next step, or repeated as an earlier attempt has recorded it.

An attempt executes `main` from the top. So that it makes the same pushes as the attempt before, it is given the same
lists of nodes, and its pulls bring the same replies, up to the last step that is recorded; from there on it is given
what there is.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from logging import WARNING

from flq.apps.logger import log
from flq.wire.grid import Delivered, Delivery, DeliveryKind, GridNode, ResultKey, Step, StepKind
from flq.wire.grid import Grid as Door
from flq.wire.ids import TaskId
from flq.wire.status import ResultStatus

PATIENCE_SECONDS = 60.0
"""How long an app may ask for more than was recorded before its next step, until it is given what there is.

A loop that looks at the clock may ask a few times more than in the attempt before. One that goes on asking has gone
another way, and would wait for ever for what it was never given.
"""

TIMED_OUT = frozenset({ResultStatus.CANCELLED, ResultStatus.EXPIRED})


@dataclass(slots=True)
class _Entry:
    """A delivery that is being recorded."""

    kind: DeliveryKind
    node_list: bytes = b""
    task_ids: list[TaskId] = field(default_factory=list)
    timed_out: list[TaskId] = field(default_factory=list)
    times: int = 1

    def add(self, keys: Sequence[ResultKey]) -> None:
        self.task_ids += [key.task_id for key in keys]
        self.timed_out += [key.task_id for key in keys if key.status in TIMED_OUT]

    def to_delivery(self) -> Delivery:
        return Delivery(
            kind=self.kind,
            node_list=self.node_list,
            task_ids=tuple(self.task_ids),
            timed_out=tuple(self.timed_out),
            times=self.times,
        )


class _Repeated:
    """A recorded step that the app has not come to yet, and what is left of its deliveries."""

    def __init__(self, step: Step) -> None:
        self.sequence, self.kind = step.sequence, step.kind
        shown = [delivery for delivery in step.deliveries if delivery.kind is DeliveryKind.NODES]
        pulled = [delivery for delivery in step.deliveries if delivery.kind is DeliveryKind.PULLED]
        self.shown = deque(chain.from_iterable(repeat(delivery.node_list, delivery.times) for delivery in shown))
        self.pulled = deque(chain.from_iterable(repeat(delivery.task_ids, delivery.times) for delivery in pulled))
        self.last_shown = self.shown[-1] if self.shown else None
        self.asked_in_vain_since: float | None = None


class Deliveries:
    """Records what the app is given between its steps, or repeats it. `clock` tells seconds."""

    def __init__(self, door: Door, clock: Callable[[], float]) -> None:
        self._door = door
        self._clock = clock
        self._ahead: deque[Step] | None = None
        self._repeated: _Repeated | None = None
        self._given_up: frozenset[TaskId] = frozenset()
        self._entries: list[_Entry] = []
        self._shown: tuple[bytes, tuple[GridNode, ...]] = (b"", ())  # the last list of nodes, with its hash
        self._new_lists: dict[bytes, tuple[GridNode, ...]] = {}
        self._kept_lists: set[bytes] = set()

    def nodes(self) -> list[GridNode]:
        """The nodes that are online, or those that were in the attempt before."""
        node_list = self._next_shown()
        if node_list is None:
            nodes = tuple(self._door.nodes())
            node_list = self._shown[0] if nodes == self._shown[1] and self._shown[0] else _hash(nodes)
            if node_list not in self._kept_lists:
                self._new_lists[node_list] = nodes
        else:
            nodes = self._shown[1] if node_list == self._shown[0] else self._door.node_list(node_list)
            self._kept_lists.add(node_list)
        self._shown = node_list, nodes
        last = self._entries[-1] if self._entries else None
        if last is not None and last.kind is DeliveryKind.NODES and last.node_list == node_list:
            last.times += 1
        else:
            self._entries.append(_Entry(DeliveryKind.NODES, node_list))
        return list(nodes)

    def to_pull(self) -> frozenset[TaskId] | None:
        """The tasks whose results the next pull brings, as in the attempt before; None: those that are there."""
        repeated = self._repeating()
        if repeated is None:
            return None
        if repeated.pulled:
            repeated.asked_in_vain_since = None
            return frozenset(repeated.pulled.popleft())
        return None if self._overdue(repeated) else frozenset()

    def pulled(self, keys: Sequence[ResultKey]) -> None:
        """Record what a pull has brought."""
        last = self._entries[-1] if self._entries else None
        if last is not None and last.kind is DeliveryKind.PULLED and not keys and not last.task_ids:
            last.times += 1
            return
        entry = _Entry(DeliveryKind.PULLED)
        entry.add(keys)
        self._entries.append(entry)

    def received(self, keys: Sequence[ResultKey]) -> None:
        """Record results that were waited for."""
        if not self._entries or self._entries[-1].kind is not DeliveryKind.RECEIVED:
            self._entries.append(_Entry(DeliveryKind.RECEIVED))
        self._entries[-1].add(keys)

    def gave_up(self, task_id: TaskId) -> bool:
        """Whether the attempt before was told that the task had no reply, and went on with that."""
        self._repeating()
        return task_id in self._given_up

    def pending(self) -> bool:
        """Whether something of the attempt before is to be delivered before the next step: then there is no waiting."""
        repeated = self._repeating()
        return repeated is not None and bool(repeated.shown or repeated.pulled)

    def delivered(self) -> Delivered:
        """What was delivered since the last step."""
        return Delivered(tuple(entry.to_delivery() for entry in self._entries), dict(self._new_lists))

    def repeats_checkpoint(self, sequence: int) -> bool:
        """Whether the attempt before has made a checkpoint at this step."""
        repeated = self._repeating()
        return repeated is not None and (repeated.sequence, repeated.kind) == (sequence, StepKind.CHECKPOINT)

    def stepped(self, sequence: int, *, repeated: bool) -> None:
        """The app has made a step, which was recorded before or not. If not, it goes its own way from here on."""
        self._repeating()
        self._entries.clear()
        self._kept_lists |= self._new_lists.keys()
        self._new_lists.clear()
        self._turn_to(sequence + 1 if repeated else None)

    def continue_at(self, sequence: int) -> None:
        """Go on behind a checkpoint: what was delivered so far was recorded by the attempt that made it."""
        self._repeating()
        self._entries.clear()
        self._new_lists.clear()
        self._turn_to(sequence)

    def _next_shown(self) -> bytes | None:
        repeated = self._repeating()
        if repeated is None:
            return None
        if repeated.shown:
            repeated.asked_in_vain_since = None
            return repeated.shown.popleft()
        return None if repeated.last_shown is None or self._overdue(repeated) else repeated.last_shown

    def _repeating(self) -> _Repeated | None:
        """The next recorded step, if there is one."""
        if self._ahead is None:
            self._ahead = deque(self._door.steps())
            self._given_up = frozenset(
                task_id for step in self._ahead for delivery in step.deliveries for task_id in delivery.timed_out
            )
            self._turn_to(0)
        return self._repeated

    def _turn_to(self, sequence: int | None) -> None:
        """Turn to the first recorded step from `sequence` on; with None there are none any more."""
        ahead = self._ahead if self._ahead is not None else deque()
        while ahead and (sequence is None or ahead[0].sequence < sequence):
            ahead.popleft()
        if not ahead:
            self._repeated, self._given_up = None, frozenset()
        elif self._repeated is None or self._repeated.sequence != ahead[0].sequence:
            self._repeated = _Repeated(ahead[0])

    def _overdue(self, repeated: _Repeated) -> bool:
        """Whether the app has asked for more than was recorded for too long; then nothing is repeated any more."""
        now = self._clock()
        if repeated.asked_in_vain_since is None:
            repeated.asked_in_vain_since = now
        if now - repeated.asked_in_vain_since < PATIENCE_SECONDS:
            return False
        log(
            WARNING,
            "before step %d the app asks for more than an earlier attempt was given: from here on nothing is repeated",
            repeated.sequence,
        )
        self._turn_to(None)
        return True


def _hash(nodes: Sequence[GridNode]) -> bytes:
    told = [(node.node_id, node.name, dict(node.config), dict(node.labels)) for node in nodes]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).digest()
