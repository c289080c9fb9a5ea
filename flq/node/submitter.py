"""Hands in replies. Whatever has finished while one submission was under way goes into the next.

While a run has more tasks at hand its replies are gathered for some milliseconds: a submission costs a transaction and
a wake-up of the ServerApp, whatever the number of replies in it. A reply that something waits for is not delayed.

The arrays of a reply that are objects are stored before it is handed in, in threads of their own, so that a large
reply does not hold up the small ones.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from flq.errors import ObjectsMissing, ObjectUnknown, Unreachable
from flq.failpoints import reach
from flq.log import get
from flq.node.cache import ObjectCache
from flq.node.lane import Lane
from flq.node.outage import Backoff, Outage
from flq.node.protocol import capped
from flq.node.reactor import Reactor, Timer
from flq.node.state import ClientStates
from flq.node.tasks import HeldTask
from flq.wire import mapped
from flq.wire.fleet import Fleet, Reply
from flq.wire.ids import ObjectHash, TaskId
from flq.wire.message import ErrorCode
from flq.wire.status import ResultStatus, Verdict

log = get(__name__)

GATHER_SECONDS = 0.025
"""Between the starts of two submissions, while there is more to come."""

UPLOAD_THREADS = 2
UPLOAD_TRIES = 3
MOST_AT_ONCE = 512
MOST_BYTES_AT_ONCE = 16 << 20


@dataclass(slots=True, eq=False)
class Outgoing:
    """A reply on its way. `files` are the arrays that the worker has written for it."""

    task: HeldTask
    reply: Reply
    files: Mapping[ObjectHash, Path] = field(default_factory=dict)
    uploads: int = 0
    alone: bool = False
    """Goes by itself, because a batch that it was in was refused."""


Settled = Callable[[HeldTask, Verdict], None]
MoreFollows = Callable[[HeldTask], bool]


class Submitter:
    """Keeps replies until the SuperLink has said what became of them.

    `settled` is called once for every task, after its client state was promoted or dropped. `more_follows` says of a
    task that nothing waits for its verdict here, and that other replies of its run come soon.
    """

    def __init__(
        self,
        fleet: Fleet,
        reactor: Reactor,
        outage: Outage,
        *,
        cache: ObjectCache,
        states: ClientStates,
        settled: Settled,
        more_follows: MoreFollows,
    ) -> None:
        self._fleet = fleet
        self._reactor = reactor
        self._outage = outage
        self._cache = cache
        self._states = states
        self._settled = settled
        self._more_follows = more_follows
        self._lane = Lane("flq-submit", reactor)
        self._uploads = Lane("flq-upload", reactor, threads=UPLOAD_THREADS)
        self._pending: deque[Outgoing] = deque()
        self._unsettled = 0
        self._backoff = Backoff()
        self._retry: Timer | None = None
        self._gathering: Timer | None = None
        self._gathered_until = 0.0
        self._urgent = False  # something waits for one of the pending replies

    @property
    def idle(self) -> bool:
        """Whether every reply is settled."""
        return not self._unsettled

    def offer(self, task: HeldTask, reply: Reply, files: Mapping[ObjectHash, Path] | None = None) -> None:
        """Take a reply."""
        if task.staged is not None:
            try:
                self._states.note_reply(task.staged, reply)
            except OSError as exc:
                # It is wanted only if this process is killed before the verdict.
                log.warning("the reply of task %d could not be noted: %s", task.task_id, exc)
        self._unsettled += 1
        outgoing = Outgoing(task, reply, files or {})
        if reply.objects:
            self._upload(outgoing, Backoff())
        else:
            self._append(outgoing)

    def try_again(self) -> None:
        """The SuperLink is reachable again: do not wait for the next try."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
            self._submit()

    def close(self) -> None:
        """End the threads."""
        self._lane.close()
        self._uploads.close()

    def _upload(self, outgoing: Outgoing, backoff: Backoff) -> None:
        def done(_nothing: None) -> None:
            self._outage.succeeded()
            self._append(outgoing)

        def failed(exc: Exception) -> None:
            if isinstance(exc, Unreachable):
                self._outage.failed(exc, what="storing a reply's arrays")
                self._reactor.after(backoff.next(), lambda: self._upload(outgoing, backoff))
                return
            log.error("the arrays of a reply cannot be stored: %s", exc, exc_info=exc)
            self._turn_into_error(
                outgoing, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, f"the reply's arrays cannot be stored: {exc}"
            )
            done(None)

        outgoing.uploads += 1
        self._uploads.call(lambda: self._store(outgoing), done=done, failed=failed)

    def _store(self, outgoing: Outgoing) -> None:
        """Store what the SuperLink does not have. Runs in an upload thread."""
        for object_hash in sorted(self._fleet.missing(outgoing.reply.objects)):
            # An array that the worker did not write is one that came with the message: it lies in the cache.
            path = outgoing.files.get(object_hash, self._cache.path(object_hash))
            reach("supernode.mid-upload")
            try:
                with path.open("rb") as file:
                    self._fleet.put(object_hash, mapped.readable(file))
            except FileNotFoundError:
                raise ObjectUnknown(f"object {object_hash.hex()} is neither stored nor here") from None

    def _append(self, outgoing: Outgoing) -> None:
        self._pending.append(outgoing)
        self._urgent = self._urgent or not self._more_follows(outgoing.task)
        self._submit()

    def _gather(self) -> bool:
        """Whether to wait for more replies; if so, come back in time."""
        left = self._gathered_until - time.monotonic()
        if self._urgent or left <= 0 or len(self._pending) >= MOST_AT_ONCE:
            return False
        if self._gathering is None:
            self._gathering = self._reactor.after(left, self._enough)
        return True

    def _enough(self) -> None:
        self._gathering = None
        self._submit()

    def _submit(self) -> None:
        if not self._pending or self._lane.busy or self._retry is not None or self._gather():
            return
        self._gathered_until = time.monotonic() + GATHER_SECONDS
        batch = self._next_batch()
        self._urgent = self._urgent and bool(self._pending)
        replies = [_under_newest_key(outgoing) for outgoing in batch]

        def done(verdicts: dict[TaskId, Verdict]) -> None:
            reach("supernode.after-submit")
            self._outage.succeeded()
            self._backoff.reset()
            for outgoing, reply in zip(batch, replies, strict=True):
                self._settle(outgoing, reply, verdicts.get(outgoing.task.task_id, Verdict.FENCED))
            self._submit()

        def failed(exc: Exception) -> None:
            if isinstance(exc, Unreachable):
                self._outage.failed(exc, what="handing in results")
                self._pending.extendleft(reversed(batch))
                self._retry = self._reactor.after(self._backoff.next(), self.try_again)
                return
            if isinstance(exc, ObjectsMissing):
                self._store_again(batch, exc.hashes)
            else:
                self._split(batch, exc)
            self._submit()

        reach("supernode.before-submit")
        self._lane.call(lambda: self._fleet.submit(replies), done=done, failed=failed)

    def _next_batch(self) -> list[Outgoing]:
        batch = [self._pending.popleft()]
        size = len(batch[0].reply.manifest)
        while self._pending and not batch[0].alone and len(batch) < MOST_AT_ONCE:
            size += len(self._pending[0].reply.manifest)
            if self._pending[0].alone or size > MOST_BYTES_AT_ONCE:
                break
            batch.append(self._pending.popleft())
        return batch

    def _settle(self, outgoing: Outgoing, reply: Reply, verdict: Verdict) -> None:
        task = outgoing.task
        if verdict is Verdict.FENCED and reply.key.token != task.key.token:
            # It was claimed anew meanwhile, by us: the work is done, only the key was old.
            self._pending.append(outgoing)
            return
        if task.staged is not None:
            if verdict is Verdict.FENCED:
                self._states.drop(task.staged)
            else:
                self._states.promote(task.staged)
        self._unsettled -= 1
        self._settled(task, verdict)

    def _store_again(self, batch: list[Outgoing], missing: frozenset[bytes]) -> None:
        for outgoing in reversed(batch):
            if not outgoing.reply.objects & missing:
                self._pending.appendleft(outgoing)
            elif outgoing.uploads < UPLOAD_TRIES:
                self._upload(outgoing, Backoff())
            else:
                text = f"the reply's arrays were stored {UPLOAD_TRIES} times and are missing"
                self._turn_into_error(outgoing, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, text)
                self._pending.appendleft(outgoing)

    def _split(self, batch: list[Outgoing], exc: Exception) -> None:
        """A batch was refused: hand each reply in by itself, so that the one that is wrong stands alone."""
        if len(batch) > 1:
            for outgoing in reversed(batch):
                outgoing.alone = True
                self._pending.appendleft(outgoing)
            return
        (outgoing,) = batch
        log.error("a result was refused: %s", exc, exc_info=exc)
        if outgoing.reply.status is ResultStatus.OK:
            self._turn_into_error(
                outgoing, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"the SuperLink refused the reply: {exc}"
            )
            self._pending.appendleft(outgoing)
        else:
            self._settle(outgoing, _under_newest_key(outgoing), Verdict.FENCED)

    def _turn_into_error(self, outgoing: Outgoing, code: int, text: str) -> None:
        outgoing.reply = Reply(
            key=outgoing.task.key,
            status=ResultStatus.ERROR,
            error_code=code,
            error_text=capped(text),
            started_at=outgoing.reply.started_at,
            ended_at=outgoing.reply.ended_at,
        )
        if outgoing.task.staged is not None:
            self._states.drop(outgoing.task.staged)
            outgoing.task.staged = None


def _under_newest_key(outgoing: Outgoing) -> Reply:
    """The reply under the key that the newest claim of its task gave."""
    key = outgoing.task.key
    return outgoing.reply if outgoing.reply.key is key else replace(outgoing.reply, key=key)
