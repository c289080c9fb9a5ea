"""The federation as a ServerApp sees it."""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from flq.apps.inbox import Inbox, Replies
from flq.apps.outbox import Parcel, parcels
from flq.errors import AppError, ObjectCorrupt, ObjectsMissing
from flq.wire import mapped
from flq.wire.codec import decode, encode
from flq.wire.grid import Checkpoint, GridNode, Pushed
from flq.wire.grid import Grid as Door
from flq.wire.ids import BatchId, NodeId, ObjectHash, TaskId
from flq.wire.message import Message, split_message_type
from flq.wire.records import RecordDict
from flq.wire.runs import RunInfo

UPLOAD_ATTEMPTS = 3
"""How often objects that the store says it misses are uploaded for one write."""

LARGE_OBJECT_BYTES = 64 << 20
"""From here on the store is asked for an object's size before memory is set aside for it."""

_LONGEST_NAME = 255

Objects = Mapping[ObjectHash, memoryview]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SavedRound:
    """A committed round: `content` is what `commit_round` was given, its arrays load when they are touched."""

    round: int
    content: RecordDict
    metrics: Mapping[str, float]
    next_sequence: int


@dataclass(frozen=True, slots=True)
class Training:
    """One call of a strategy's `start` in this run: the how-manieth, from 0, and the seed of its random choices."""

    index: int
    seed: int


class Grid:
    """Sends messages to the nodes of the federation and receives their replies.

    Every push is numbered in program order, so that a later attempt of the run that makes the same pushes gets the
    replies that exist. So they come from one thread, the one that made the Grid.

    Parameters
    ----------
    door
        What the Grid speaks to the SuperLink through.
    sequence
        The number of the first push.

    """

    def __init__(self, door: Door, *, sequence: int = 0) -> None:
        self._door = door
        self._sequence = sequence
        self._inbox = Inbox(door, self._fetch)
        self._thread = threading.get_ident()
        self._trainings: list[int] = []
        self._first_round = 0

    @cached_property
    def run(self) -> RunInfo:
        """The run that the ServerApp leads."""
        return self._door.run()

    @property
    def sequence(self) -> int:
        """The number of the next push."""
        return self._sequence

    def get_node_ids(self) -> list[int]:
        """The ids of the nodes that are online and that the run may use, in order."""
        return [node.node_id for node in self.get_nodes()]

    def get_nodes(self) -> list[GridNode]:
        """The nodes that are online and that the run may use, by id."""
        return self._door.nodes()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages and return their ids, in their order.

        A content that several messages share is stored once. Sets `run_id` and `message_id` of the messages.

        Raises
        ------
        ValueError
            If a message has an error in the place of content.
        NodeUnknown
            If a message goes to a node that does not exist.
        AppError
            If called from another thread than the one that made the Grid.

        """
        return [str(task_id) for _, task_id in self._push(messages)]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that have come in to the messages of these ids, in their order; each is handed out once.

        Where there is no reply, because the task failed or its time ran out, the message has an error. The arrays of a
        reply are read when they are touched. Does not wait.
        """
        self._check_thread()
        task_ids = [_task_id(message_id) for message_id in message_ids]
        self._inbox.look()
        return list(self._inbox.messages(self._inbox.take(task_ids)))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Replies:
        """Send messages and return their replies, to be iterated over while they come in.

        There is one reply for each message, in the order of the tasks, so that sums over them do not depend on
        who was first. Where there is none, it is a message with an error. When `timeout` seconds have passed, what
        is still open is cancelled.
        """
        return Replies(self._inbox, self._push(messages), timeout=timeout)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Deprecated: use `Message(content, dst_node_id, message_type)`."""
        warnings.warn("create_message is deprecated, use Message(...)", DeprecationWarning, stacklevel=2)
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def wait(self, seconds: float) -> None:
        """Return when a reply may have come in, or after `seconds`."""
        self._door.wait(seconds)

    def save_artifact(self, name: str, data: bytes | bytearray | memoryview | Path) -> None:
        """Store a file of the run, to be fetched with `flq pull`; one of the same name is replaced.

        `name` is a file name without a folder; `data` is the content, or the Path of a file.
        """
        self._check_thread()
        _check_artifact_name(name)
        with _readable(data) as content:
            object_hash = ObjectHash(hashlib.sha256(content).digest())
            self._write({object_hash: content}, lambda: self._door.put_artifact(name, object_hash))

    def plan_rounds(self, rounds: int) -> None:
        """Say how many rounds the run will have, for people who watch."""
        self._door.plan_rounds(rounds)

    def begin_training(self, rounds: int) -> Training:
        """Say that a training of so many rounds begins; its rounds are counted on from those of the one before."""
        self._first_round = sum(self._trainings)
        self._trainings.append(rounds)
        self.plan_rounds(sum(self._trainings))
        return Training(index=len(self._trainings) - 1, seed=self.run.seed)

    def commit_round(self, server_round: int, content: RecordDict, metrics: Mapping[str, float]) -> None:
        """Record a finished round with what a later attempt needs to go on behind it.

        Exactly one commit of a round counts. Raises `AttemptFenced` if another attempt has taken the run over.
        """
        self._check_thread()
        encoded = encode(content)
        checkpoint = Checkpoint(
            round=self._first_round + server_round,
            state=encoded.manifest,
            objects=frozenset(encoded.objects),
            metrics=dict(metrics),
            next_sequence=self._sequence,
        )
        self._write(encoded.objects, lambda: self._door.commit_round(checkpoint))

    def last_checkpoint(self) -> SavedRound | None:
        """The newest committed round of the run, or None."""
        saved = self._door.last_checkpoint()
        if saved is None:
            return None
        return SavedRound(saved.round, decode(saved.state, self._fetch), saved.metrics, saved.next_sequence)

    def continue_at(self, sequence: int) -> None:
        """Number pushes on from `sequence`, as the attempt did that committed a round with it."""
        self._sequence = max(self._sequence, sequence)

    def record_metrics(self, server_round: int, metrics: Mapping[str, float], node_id: int | None = None) -> None:
        """Record named numbers of a round, 0 being the evaluation before the first; the newest value counts."""
        node = None if node_id is None else NodeId(node_id)
        self._door.record_metrics(self._first_round + server_round, metrics, node)

    def _push(self, messages: Iterable[Message]) -> list[tuple[BatchId, TaskId]]:
        self._check_thread()
        messages = [_checked(message) for message in messages]
        tasks: dict[int, tuple[BatchId, TaskId]] = {}
        for parcel in parcels(messages, sequence=self._sequence, first_round=self._first_round):
            pushed = self._send(parcel)
            self._sequence += 1
            sent = [messages[position].metadata for position in parcel.positions]
            for position, metadata, task_id in zip(parcel.positions, sent, pushed.task_ids, strict=True):
                metadata.run_id, metadata.message_id = self.run.run_id, str(task_id)
                tasks[position] = pushed.batch_id, task_id
            self._inbox.expect(pushed, sent)
        return [tasks[position] for position in range(len(messages))]

    def _send(self, parcel: Parcel) -> Pushed:
        return self._write(parcel.objects, lambda: self._door.push(parcel.push))

    def _write(self, objects: Objects, write: Callable[[], T]) -> T:
        """Upload what the store does not have of `objects`, then write what names them."""
        missing: frozenset[bytes] = self._door.missing(objects) if objects else frozenset()
        for left in reversed(range(UPLOAD_ATTEMPTS)):
            for object_hash in sorted(missing):
                self._door.put(ObjectHash(object_hash), objects[ObjectHash(object_hash)])
            try:
                return write()
            except ObjectsMissing as exc:
                if not left or not exc.hashes <= objects.keys():
                    raise
                missing = exc.hashes
        raise AssertionError  # pragma: no cover - the last attempt returns or raises

    def _fetch(self, object_hash: ObjectHash, size: int) -> memoryview:
        if size >= LARGE_OBJECT_BYTES and self._door.size(object_hash) != size:
            raise ObjectCorrupt(f"an object is announced with {size} bytes, but has another size")
        buffer = np.empty(size, np.uint8).data
        self._door.read(object_hash, buffer)
        return buffer

    def _check_thread(self) -> None:
        if threading.get_ident() != self._thread:
            raise AppError(
                "the Grid was used from another thread than the one that `main` runs in",
                hint="pushes are numbered in program order, so that a restarted run can be continued:"
                " send from `main`'s thread",
            )


def _checked(message: Message) -> Message:
    if not isinstance(message, Message):
        raise TypeError(f"a Grid sends Messages, not {type(message).__name__}")
    if message.has_error():
        raise ValueError("a message with an error in the place of content cannot be sent")
    split_message_type(message.metadata.message_type)
    return message


def _task_id(message_id: str) -> TaskId:
    if not isinstance(message_id, str) or not message_id.isdecimal():
        raise ValueError(f"{message_id!r} is no id that push_messages returned")
    return TaskId(int(message_id))


def _check_artifact_name(name: str) -> None:
    if not isinstance(name, str) or name in ("", ".", "..") or not name.isprintable() or set(name) & {"/", "\\"}:
        raise ValueError(f"{name!r} is no name for an artifact: it is a file name without a folder, like 'model.npz'")
    if len(name.encode()) > _LONGEST_NAME:
        raise ValueError(f"the name of an artifact has at most {_LONGEST_NAME} bytes; {name[:40]!r}... is longer")


@contextmanager
def _readable(data: bytes | bytearray | memoryview | Path) -> Iterator[memoryview]:
    """`data` as bytes; a file is mapped into memory, not read into it."""
    if not isinstance(data, Path):
        yield memoryview(data).cast("B").toreadonly()
        return
    with data.open("rb") as file:
        yield mapped.readable(file)
