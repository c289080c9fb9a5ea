"""From results to replies: which ones have come in, and the messages that an app makes of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from weakref import WeakSet

from flq.apps.deliveries import TIMED_OUT, Deliveries
from flq.errors import CodecError, LinkError
from flq.wire.codec import Fetch, decode
from flq.wire.grid import Grid as Door
from flq.wire.grid import Pushed, Result, ResultKey
from flq.wire.ids import SUPERLINK_NODE_ID, BatchId, NodeId, TaskId
from flq.wire.message import Error, ErrorCode, Message, Metadata
from flq.wire.records import RecordDict
from flq.wire.runs import FeedCursor
from flq.wire.status import ResultStatus

RESULTS_AT_ONCE = 32
"""How many replies are read together: their manifests stand in memory at the same time, their objects do not."""

WAIT_SECONDS = 5.0
"""The longest wait before the next look, in case that a wake-up was lost."""

CANCEL_SECONDS = 60.0
"""How long the results of cancelled tasks may take to come in."""


@dataclass(slots=True)
class Inbox:
    """Follows the open tasks of a run, and records what of their results is delivered. `clock` tells seconds."""

    door: Door
    fetch: Fetch
    clock: Callable[[], float] = time.monotonic
    deliveries: Deliveries = field(init=False)
    _requests: dict[TaskId, Metadata] = field(default_factory=dict)
    _open: dict[BatchId, set[TaskId]] = field(default_factory=dict)
    _arrived: dict[TaskId, ResultKey] = field(default_factory=dict)
    _cursor: FeedCursor = field(default_factory=FeedCursor)
    _to_pull: dict[TaskId, BatchId] = field(default_factory=dict)
    _awaited: WeakSet[Replies] = field(default_factory=WeakSet)

    def __post_init__(self) -> None:
        self.deliveries = Deliveries(self.door, self.clock)

    def expect(self, pushed: Pushed, requests: Sequence[Metadata]) -> None:
        """From now on follow the tasks of a push; `requests` are the messages', in the order of the tasks."""
        self._open[pushed.batch_id] = set(pushed.task_ids)
        self._requests.update(zip(pushed.task_ids, requests, strict=True))
        if pushed.replayed:
            self._catch_up(pushed.batch_id, requests[0].ttl)

    def _catch_up(self, batch_id: BatchId, ttl: float) -> None:
        """Take note of results that may be older than the cursor, which has passed them before they were followed.

        Tasks that ended without a reply, while nobody was told, are issued anew.
        """
        keys = self.door.arrived([batch_id], FeedCursor()).keys
        anew = {
            key.task_id
            for key in keys
            if key.status in TIMED_OUT
            and key.task_id in self._open[batch_id]
            and not self.deliveries.gave_up(key.task_id)
        }
        if anew:
            self.door.reissue(batch_id, sorted(anew), ttl)
        self._note(key for key in keys if key.task_id not in anew)

    def look(self) -> None:
        """Take note of the results that have come in."""
        if self._open:
            page = self.door.arrived(tuple(self._open), self._cursor)
            self._cursor = page.cursor
            self._note(page.keys)

    def _note(self, keys: Iterable[ResultKey]) -> None:
        for key in keys:
            waiting = self._open.get(key.batch_id, set())
            if key.task_id not in waiting:
                continue
            waiting.discard(key.task_id)
            if not waiting:
                del self._open[key.batch_id]
            self._arrived[key.task_id] = key

    def take(self, task_ids: Iterable[TaskId]) -> list[tuple[ResultKey, Metadata]]:
        """Hand out the results of `task_ids` that have come in, each once, with their requests."""
        taken = [self._arrived.pop(task_id) for task_id in task_ids if task_id in self._arrived]
        for key in taken:
            self._to_pull.pop(key.task_id, None)
        return [(key, self._requests.pop(key.task_id)) for key in taken]

    def succeeded(self, task_ids: Iterable[TaskId]) -> int:
        """How many of these have come in without an error, and have not been handed out."""
        arrived = (self._arrived.get(task_id) for task_id in task_ids)
        return sum(key is not None and key.status is ResultStatus.OK for key in arrived)

    def pull(self, task_ids: Sequence[TaskId]) -> list[tuple[ResultKey, Metadata]]:
        """Hand out the results of `task_ids` that have come in, or that a pull has brought in the attempt before."""
        recorded = self.deliveries.to_pull()
        if recorded is None:
            self.look()
        taken = self.take(task_ids if recorded is None else [task_id for task_id in task_ids if task_id in recorded])
        self.deliveries.pulled([key for key, _ in taken])
        return taken

    def to_pull(self, tasks: Iterable[tuple[BatchId, TaskId]]) -> None:
        """The replies to `tasks` will be pulled, at any time."""
        self._to_pull.update((task_id, batch_id) for batch_id, task_id in tasks)

    def awaited(self, replies: Replies) -> None:
        """Somebody may iterate over `replies` for as long as they are referred to."""
        self._awaited.add(replies)

    def open_batches(self) -> frozenset[BatchId]:
        """The batches with replies that may still be handed out: they are followed, or somebody holds their replies."""
        held = {batch_id for replies in self._awaited for batch_id in replies.batches}
        return frozenset(held.union(self._to_pull.values()))

    def save(self) -> bytes:
        """The tasks whose replies are still to be pulled, for an attempt that goes on from here."""
        tasks = []
        for task_id, batch_id in self._to_pull.items():
            request = self._requests[task_id]
            said = [request.message_type, request.group_id, request.created_at, request.ttl]
            tasks.append([batch_id, task_id, request.dst_node_id, *said])
        return json.dumps(tasks).encode()

    def load(self, saved: bytes) -> None:
        """Follow the tasks of `save`, unless they are followed."""
        ttls: dict[BatchId, float] = {}
        for batch_id, task_id, node_id, kind, group, created_at, ttl in json.loads(saved):
            if task_id not in self._requests:
                request = Metadata(
                    0, str(task_id), SUPERLINK_NODE_ID, NodeId(node_id), "", group, created_at, ttl, kind
                )
                self._requests[task_id] = request
                self._open.setdefault(batch_id, set()).add(task_id)
                self._to_pull[task_id] = batch_id
                ttls[batch_id] = ttl
        for batch_id, ttl in ttls.items():
            self._catch_up(batch_id, ttl)

    def messages(self, taken: Sequence[tuple[ResultKey, Metadata]]) -> Iterator[Message]:
        """The replies to `taken`, in order; read a few at a time, their arrays not at all."""
        for start in range(0, len(taken), RESULTS_AT_ONCE):
            some = taken[start : start + RESULTS_AT_ONCE]
            results = self.door.results([key for key, _ in some])
            for result, (_, request) in zip(results, some, strict=True):
                yield to_message(result, request, self.fetch)

    def wait(self, seconds: float = WAIT_SECONDS) -> None:
        """Return when a result may have come in, or after `seconds`."""
        self.door.wait(min(seconds, WAIT_SECONDS))


class Replies(Iterable[Message]):
    """The replies to some messages, in the order of their tasks, one for each message.

    Iterating waits for the next reply in this order, not for all of them. Replies and their arrays are not kept: they
    can be iterated over again, and are then read again. When `timeout` has passed, or `enough` replies without an error
    have come in, the tasks that are still open are cancelled, and their replies are errors.
    """

    def __init__(
        self,
        inbox: Inbox,
        tasks: Sequence[tuple[BatchId, TaskId]],
        *,
        timeout: float | None,
        enough: int | None = None,
    ) -> None:
        self._inbox = inbox
        self._enough = enough
        self._tasks = sorted(tasks, key=lambda task: task[1])
        self._taken: list[tuple[ResultKey, Metadata]] = []  # a prefix of the tasks
        inbox.awaited(self)
        self._deadline = None if timeout is None else inbox.clock() + timeout
        self._cancelled = False

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def batches(self) -> frozenset[BatchId]:
        """The batches that the tasks belong to."""
        return frozenset(batch_id for batch_id, _ in self._tasks)

    def __iter__(self) -> Iterator[Message]:
        position = 0
        while position < len(self._tasks):
            if position == len(self._taken):
                self._await_next()
            ready = self._taken[position : position + RESULTS_AT_ONCE]
            yield from self._inbox.messages(ready)
            position += len(ready)

    def _await_next(self) -> None:
        """Return when the result of the next task has come in."""
        # A result that is stored after a look ends the next wait, so that a look before each wait is not needed.
        if not self._taken:
            self._inbox.look()
        while not self._take():
            self._wait()
            self._inbox.look()

    def _take(self) -> bool:
        """Take the next results in order; whether there are any."""
        before = len(self._taken)
        for _, task_id in self._tasks[before:]:
            following = self._inbox.take([task_id])
            if not following:
                break
            self._taken += following
        self._inbox.deliveries.received([key for key, _ in self._taken[before:]])
        return len(self._taken) > before

    def _has_enough(self) -> bool:
        if self._enough is None:
            return False
        taken = sum(key.status is ResultStatus.OK for key, _ in self._taken)
        return taken + self._inbox.succeeded(task_id for _, task_id in self._tasks) >= self._enough

    def _wait(self) -> None:
        left = float("inf") if self._deadline is None else self._deadline - self._inbox.clock()
        if left > 0 and (self._cancelled or not self._has_enough()):
            self._inbox.wait(left)
        elif self._cancelled:
            raise LinkError("tasks that were cancelled have no results")
        else:
            self._cancelled = True
            self._deadline = self._inbox.clock() + CANCEL_SECONDS
            self._inbox.door.cancel(sorted({batch_id for batch_id, _ in self._tasks[len(self._taken) :]}))


def to_message(result: Result, request: Metadata, fetch: Fetch) -> Message:
    """The reply that a result is; anything but a readable one becomes an error."""
    metadata = Metadata(
        run_id=request.run_id,
        message_id=f"{result.task_id}.reply",
        src_node_id=result.node_id,
        dst_node_id=SUPERLINK_NODE_ID,
        reply_to_message_id=str(result.task_id),
        group_id=request.group_id,
        created_at=result.created_at,
        ttl=max(0.0, request.created_at + request.ttl - result.created_at),
        message_type=request.message_type,
    )
    payload: RecordDict | Error
    if result.status is ResultStatus.OK:
        try:
            payload = decode(result.manifest, fetch)
        except CodecError as exc:
            payload = Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, f"the reply cannot be read: {exc}")
    else:
        payload = _error(result)
    return Message(payload, metadata=metadata)


def _error(result: Result) -> Error:
    fallback = ErrorCode.UNKNOWN if result.status is ResultStatus.ERROR else ErrorCode.MESSAGE_UNAVAILABLE
    code = fallback if result.error_code is None else result.error_code
    return Error(code, result.error_text or _REASONS[result.status])


_REASONS = {
    ResultStatus.ERROR: "the ClientApp failed",
    ResultStatus.EXPIRED: "the deadline passed before the task was done",
    ResultStatus.CANCELLED: "the task was cancelled",
}
