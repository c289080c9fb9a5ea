"""The federation as a ServerApp sees it."""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from flq.apps import generators
from flq.apps.inbox import Inbox, Replies
from flq.apps.outbox import Parcel, parcels
from flq.errors import AppError, ObjectCorrupt, ObjectsMissing
from flq.failpoints import reach
from flq.wire import mapped
from flq.wire.array import Array
from flq.wire.codec import decode, encode
from flq.wire.grid import Checkpoint, GridNode, Pushed
from flq.wire.grid import Grid as Door
from flq.wire.ids import BatchId, NodeId, ObjectHash, TaskId
from flq.wire.message import Message, split_message_type
from flq.wire.records import ConfigRecord, RecordDict
from flq.wire.runs import RunInfo

UPLOAD_ATTEMPTS = 3
"""How often objects that the store says it misses are uploaded for one write."""

LARGE_OBJECT_BYTES = 64 << 20
"""From here on the store is asked for an object's size before memory is set aside for it."""

_LONGEST_NAME = 255

_POSITION = "flq.grid"
"""The name of the record in a checkpoint that says where the Grid and the generators of random numbers stood."""

Objects = Mapping[ObjectHash, memoryview]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SavedRound:
    """A committed round: `content` is what `commit_round` was given, its arrays load when they are touched.

    `position` is for `continue_at`: the number of the next step, the states of the generators of random numbers, and
    the messages whose replies were still to be pulled.
    """

    round: int
    content: RecordDict
    metrics: Mapping[str, float]
    position: ConfigRecord

    @property
    def next_sequence(self) -> int:
        """The number of the first step after the commit."""
        return _next_sequence(self.position)


@dataclass(frozen=True, slots=True)
class Training:
    """One call of a strategy's `start` in this run: the how-manieth, from 0, and the seed of its random choices."""

    index: int
    seed: int


class Grid:
    """Sends messages to the nodes of the federation and receives their replies.

    Pushes and commits are numbered in program order, and what the app was given in between is recorded with each: lists
    of nodes, replies, time-outs. A later attempt of the run is given the same up to the last recorded step; the pushes
    that it repeats find the tasks that exist. So they come from one thread, the one that made the Grid.

    Parameters
    ----------
    door
        What the Grid speaks to the SuperLink through.
    sequence
        The number of the first step.

    """

    def __init__(self, door: Door, *, sequence: int = 0) -> None:
        self._door = door
        self._sequence = sequence
        self._inbox = Inbox(door, self._fetch)
        self._thread = threading.get_ident()
        self._trainings: list[int] = []
        self._first_round = 0
        self._first_left_out: int | None = None
        self._pushed_at: dict[BatchId, int] = {}
        self._open_from: int | None = None
        self._committer = ""

    @cached_property
    def run(self) -> RunInfo:
        """The run that the ServerApp leads."""
        return self._door.run()

    @property
    def sequence(self) -> int:
        """The number of the next step: push or commit."""
        return self._sequence

    def get_node_ids(self) -> list[int]:
        """The ids of the nodes that are online and that the run may use, in order."""
        return [node.node_id for node in self.get_nodes()]

    def get_nodes(self) -> list[GridNode]:
        """The nodes that are online and that the run may use, by id."""
        self._check_thread()
        return self._inbox.deliveries.nodes()

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
        tasks = self._push(messages)
        self._inbox.to_pull(tasks)
        return [str(task_id) for _, task_id in tasks]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that have come in to the messages of these ids, in their order; each is handed out once.

        Where there is no reply, because the task failed or its time ran out, the message has an error. The arrays of a
        reply are read when they are touched. Does not wait.
        """
        self._check_thread()
        task_ids = [_task_id(message_id) for message_id in message_ids]
        return list(self._inbox.messages(self._inbox.pull(task_ids)))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Replies:
        """Send messages and return their replies, to be iterated over while they come in.

        There is one reply for each message, in the order of the tasks, so that sums over them do not depend on
        who was first. Where there is none, it is a message with an error. When `timeout` seconds have passed, what
        is still open is cancelled.
        """
        return Replies(self._inbox, self._push(messages), timeout=timeout)

    def first_replies(self, messages: Iterable[Message], *, enough: int, timeout: float | None = None) -> Replies:
        """The same, but what is still open is cancelled as soon as `enough` replies without an error have come in."""
        return Replies(self._inbox, self._push(messages), timeout=timeout, enough=enough)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Deprecated: use `Message(content, dst_node_id, message_type)`."""
        warnings.warn("create_message is deprecated, use Message(...)", DeprecationWarning, stacklevel=2)
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def wait(self, seconds: float) -> None:
        """Return when a reply may have come in, or after `seconds`."""
        if not self._inbox.deliveries.pending():
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
        """Say that a training of so many rounds begins; its rounds are counted on from those of the one before.

        Raises `AppError` if the run has made checkpoints by hand.
        """
        self.commits_by("Strategy.start")
        self._first_round = sum(self._trainings)
        self._trainings.append(rounds)
        self.plan_rounds(sum(self._trainings))
        return Training(index=len(self._trainings) - 1, seed=self.run.seed)

    def commits_by(self, committer: str) -> None:
        """Say who commits. Raises `AppError` if another one has: an attempt could not tell where to go on."""
        if self._committer not in {"", committer}:
            raise AppError(
                f"the run has commits of {self._committer}, and {committer} would make others",
                hint="Strategy.start commits its rounds itself; context.checkpoint is for loops without it",
            )
        self._committer = committer

    def commit_round(self, server_round: int, content: RecordDict, metrics: Mapping[str, float]) -> None:
        """Record a finished round with what a later attempt needs to go on behind it.

        Exactly one commit of a round counts. Raises `AttemptFenced` if another attempt has taken the run over.
        """
        self._check_thread()
        encoded = encode(RecordDict({**content, _POSITION: self._position()}))
        open_batches = self._inbox.open_batches()
        checkpoint = Checkpoint(
            round=self._first_round + server_round,
            state=encoded.manifest,
            objects=frozenset(encoded.objects),
            metrics=dict(metrics),
            next_sequence=self._sequence + 1,
            first_sequence=self._first_left_out,
            open_batches=open_batches,
            open_from=self._open_from,
            delivered=self._inbox.deliveries.delivered(),
        )
        repeated = self._inbox.deliveries.repeats_checkpoint(self._sequence)
        reach("serverapp.before-commit")
        self._write(encoded.objects, lambda: self._door.commit_round(checkpoint))
        reach("serverapp.after-commit")
        self._stepped(repeated=repeated)
        self._pushed_at = {batch_id: at for batch_id, at in self._pushed_at.items() if batch_id in open_batches}
        self._open_from = min(self._pushed_at.values(), default=None)

    def stored(self, array: Array) -> Array:
        """An array of a commit without its bytes: they are read from where the commit has put them.

        For one that is an object of its own as long as the newest commit has it: large, or kept `apart`.
        """
        digest, nbytes = array.digest, array.nbytes
        load = partial(self._fetch, digest, nbytes)
        return Array.lazy(dtype=array.dtype, shape=array.shape, load=load, nbytes=nbytes, digest=digest, apart=True)

    def last_checkpoint(self) -> SavedRound | None:
        """The newest committed round of the run, or None.

        Who asks goes on from there, with `continue_at`: what is sent and received from here on up to the next commit is
        released by it, since no later attempt will repeat it.
        """
        self._first_left_out = self._sequence
        saved = self._door.last_checkpoint()
        if saved is None:
            return None
        content = decode(saved.state, self._fetch)
        position = content.config_records.get(_POSITION, ConfigRecord())
        return SavedRound(
            round=saved.round,
            content=RecordDict({name: record for name, record in content.items() if name != _POSITION}),
            metrics=saved.metrics,
            position=ConfigRecord({**position, "sequence": saved.next_sequence}),
        )

    def continue_at(self, position: ConfigRecord) -> None:
        """Go on as the attempt did that made the commit which `position` is of.

        Steps are numbered on, the generators of random numbers have the states that they had, and replies to messages
        that were pushed before can be pulled.
        """
        self._sequence = max(self._sequence, _next_sequence(position))
        self._inbox.deliveries.continue_at(self._sequence)
        generators.restore({name: state for name, state in position.items() if isinstance(state, bytes)})
        pulls = position.get("pulls")
        if isinstance(pulls, bytes) and position["run"] == self.run.run_id:  # not those of a run that this is a fork of
            self._inbox.load(pulls)
            left_open = self._inbox.open_batches() - self._pushed_at.keys()
            self._pushed_at.update(dict.fromkeys(left_open, 0))  # no later than they were
            self._open_from = 0 if left_open else None

    def _position(self) -> ConfigRecord:
        return ConfigRecord({"run": self.run.run_id, "pulls": self._inbox.save(), **generators.save()})

    def record_metrics(self, server_round: int, metrics: Mapping[str, float], node_id: int | None = None) -> None:
        """Record named numbers of a round, 0 being the evaluation before the first; the newest value counts."""
        node = None if node_id is None else NodeId(node_id)
        self._door.record_metrics(self._first_round + server_round, metrics, node)

    def _push(self, messages: Iterable[Message]) -> list[tuple[BatchId, TaskId]]:
        self._check_thread()
        messages = [_checked(message) for message in messages]
        tasks: dict[int, tuple[BatchId, TaskId]] = {}
        for parcel in parcels(messages, sequence=self._sequence, first_round=self._first_round):
            reach("serverapp.before-push")
            pushed = self._send(parcel)
            reach("serverapp.after-push")
            self._pushed_at[pushed.batch_id] = self._sequence
            self._stepped(repeated=pushed.replayed)
            sent = [messages[position].metadata for position in parcel.positions]
            for position, metadata, task_id in zip(parcel.positions, sent, pushed.task_ids, strict=True):
                metadata.run_id, metadata.message_id = self.run.run_id, str(task_id)
                tasks[position] = pushed.batch_id, task_id
            self._inbox.expect(pushed, sent)
        return [tasks[position] for position in range(len(messages))]

    def _send(self, parcel: Parcel) -> Pushed:
        push = replace(parcel.push, delivered=self._inbox.deliveries.delivered())
        return self._write(parcel.objects, lambda: self._door.push(push))

    def _stepped(self, *, repeated: bool) -> None:
        self._inbox.deliveries.stepped(self._sequence, repeated=repeated)
        self._sequence += 1

    def _write(self, objects: Objects, write: Callable[[], T]) -> T:
        """Upload what the store does not have of `objects`, then write what names them."""
        missing: frozenset[bytes] = self._door.missing(objects) if objects else frozenset()
        for left in reversed(range(UPLOAD_ATTEMPTS)):
            for object_hash in sorted(missing):
                reach("serverapp.mid-upload")
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


def _next_sequence(position: ConfigRecord) -> int:
    sequence = position["sequence"]
    if not isinstance(sequence, int):
        raise AppError("the checkpoint of the run cannot be read")
    return sequence


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
