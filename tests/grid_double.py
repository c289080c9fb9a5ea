"""A stand-in for the Grid door, for unit tests of what apps use. The real one has a conformance suite of its own."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from flq.apps import ClientApp, Context, Error, Message, Metadata, RecordDict
from flq.errors import LinkError, ObjectsMissing, ObjectUnknown
from flq.wire.codec import decode, encode, object_sizes
from flq.wire.grid import Checkpoint, Delivered, GridNode, Push, Pushed, Result, ResultKey, ResultPage, Step, StepKind
from flq.wire.ids import BatchId, NodeId, ObjectHash, RunId, TaskId
from flq.wire.message import ErrorCode
from flq.wire.runs import ConfigValue, FeedCursor, RunInfo
from flq.wire.status import ResultStatus, RunStatus

Answer = Callable[[Message], RecordDict | Error | ResultStatus]


@dataclass
class OpenTask:
    batch_id: BatchId
    task_id: TaskId
    node_id: NodeId
    message: Message


@dataclass
class GridDouble:
    """Does a task at each `wait`, by calling `answer`; the newest one first if `newest_first`."""

    answer: Answer
    node_ids: Sequence[int] = (2, 3)
    newest_first: bool = False
    idle: bool = False  # nothing is done, and a wait lets a second pass
    config: Mapping[str, ConfigValue] = field(default_factory=dict)
    stored: dict[ObjectHash, bytes] = field(default_factory=dict)
    forgotten: set[ObjectHash] = field(default_factory=set)  # said to be there, but gone at the write
    pushes: list[Push] = field(default_factory=list)
    batches: dict[int, tuple[Push, Pushed]] = field(default_factory=dict)
    open: list[OpenTask] = field(default_factory=list)
    done: list[Result] = field(default_factory=list)
    recorded: dict[int, Step] = field(default_factory=dict)
    node_lists: dict[bytes, tuple[GridNode, ...]] = field(default_factory=dict)
    diverged: list[int] = field(default_factory=list)
    reissued: list[TaskId] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    metrics: dict[tuple[int, str], float] = field(default_factory=dict)
    artifacts: dict[str, ObjectHash] = field(default_factory=dict)
    planned: list[int] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    now: float = 0.0
    last_id: int = 100

    def run(self) -> RunInfo:
        return RunInfo(
            run_id=RunId(7),
            name="brave-otter",
            app="app",
            bundle=ObjectHash(bytes(32)),
            config=self.config,
            seed=1,
            status=RunStatus.RUNNING,
        )

    def nodes(self) -> list[GridNode]:
        return [GridNode(node_id=NodeId(n), name=f"node-{n}", config={}, labels={}) for n in self.node_ids]

    def missing(self, hashes: Iterable[ObjectHash]) -> frozenset[ObjectHash]:
        self.calls["missing"] += 1
        return frozenset(name for name in hashes if name not in self.stored and name not in self.forgotten)

    def put(self, object_hash: ObjectHash, data: memoryview) -> None:
        self.calls["put"] += 1
        assert hashlib.sha256(data).digest() == object_hash
        self.stored[object_hash] = bytes(data)
        self.forgotten.discard(object_hash)

    def read(self, object_hash: ObjectHash, into: memoryview) -> None:
        self.calls["read"] += 1
        if object_hash not in self.stored:
            raise ObjectUnknown
        into[:] = self.stored[object_hash]

    def size(self, object_hash: ObjectHash) -> int:
        return len(self.stored[object_hash])

    def _check(self, objects: Iterable[ObjectHash]) -> None:
        lacking = frozenset(name for name in objects if name not in self.stored)
        if lacking:
            raise ObjectsMissing(lacking)

    def push(self, push: Push) -> Pushed:
        self.calls["push"] += 1
        self._check(push.objects)
        if push.sequence in self.batches:
            before, pushed = self.batches[push.sequence]
            if before.content_hash == push.content_hash:
                return Pushed(pushed.batch_id, pushed.task_ids, replayed=True)
        self._record(push.sequence, StepKind.PUSH, push.delivered)
        self.pushes.append(push)
        batch_id = BatchId(self._next_id())
        manifests = push.manifests * (len(push.node_ids) if len(push.manifests) == 1 else 1)
        tasks = [
            OpenTask(batch_id, TaskId(self._next_id()), node_id, self._message(push, node_id, manifest))
            for node_id, manifest in zip(push.node_ids, manifests, strict=True)
        ]
        for task in tasks:
            task.message.metadata.message_id = str(task.task_id)
        self.open += tasks
        pushed = Pushed(batch_id, tuple(task.task_id for task in tasks))
        self.batches[push.sequence] = push, pushed
        return pushed

    def _record(self, sequence: int, kind: StepKind, delivered: Delivered) -> None:
        """Number a step. One that is numbered so already is a divergence: it and what follows it are void."""
        self.node_lists |= delivered.node_lists
        if sequence in self.recorded:
            self.diverged.append(sequence)
            self.recorded = {number: step for number, step in self.recorded.items() if number < sequence}
            self.batches = {number: batch for number, batch in self.batches.items() if number < sequence}
        self.recorded[sequence] = Step(sequence, kind, delivered.deliveries)

    def steps(self) -> list[Step]:
        left_out = [(saved.first_sequence, saved.next_sequence) for saved in self.checkpoints]
        return [
            step
            for number, step in sorted(self.recorded.items())
            if not any(first is not None and first < number < following for first, following in left_out)
        ]

    def node_list(self, node_list: bytes) -> tuple[GridNode, ...]:
        if node_list not in self.node_lists:
            raise LinkError
        return self.node_lists[node_list]

    def reissue(self, batch_id: BatchId, task_ids: Sequence[TaskId], ttl: float) -> int:
        assert ttl > 0
        self.reissued += task_ids
        pushes = {pushed.batch_id: (push, pushed) for push, pushed in self.batches.values()}
        push, pushed = pushes[batch_id]
        for task_id in task_ids:
            node_id = push.node_ids[pushed.task_ids.index(task_id)]
            message = self._message(push, node_id, push.manifests[0])
            self.open.append(OpenTask(batch_id, task_id, node_id, message))
        self.done = [result for result in self.done if result.task_id not in task_ids]
        return len(task_ids)

    def _next_id(self) -> int:
        self.last_id += 1
        return self.last_id

    def fetch(self, object_hash: ObjectHash, size: int) -> memoryview:
        data = bytearray(self.stored[object_hash])
        assert len(data) == size
        return memoryview(data)

    def _message(self, push: Push, node_id: NodeId, manifest: bytes) -> Message:
        metadata = Metadata(7, "", 1, node_id, "", push.group, time.time(), push.ttl, push.kind)
        return Message(decode(manifest, self.fetch), metadata=metadata)

    def do_one(self) -> None:
        task = self.open.pop(-1 if self.newest_first else 0)
        self.finish(task, self.answer(task.message))

    def finish(self, task: OpenTask, answer: RecordDict | Error | ResultStatus) -> None:
        status, manifest, code, text = ResultStatus.OK, b"", None, None
        if isinstance(answer, RecordDict):
            encoded = encode(answer)
            manifest = encoded.manifest
            assert object_sizes(manifest).keys() == encoded.objects.keys()
            self.stored |= {name: bytes(data) for name, data in encoded.objects.items()}
        elif isinstance(answer, Error):
            status, code, text = ResultStatus.ERROR, answer.code, answer.reason
        else:
            status = answer
        self.done.append(
            Result(
                batch_id=task.batch_id,
                task_id=task.task_id,
                node_id=task.node_id,
                status=status,
                error_code=code,
                error_text=text,
                manifest=manifest,
                created_at=time.time(),
            )
        )

    def arrived(self, batches: Sequence[BatchId], cursor: FeedCursor) -> ResultPage:
        self.calls["arrived"] += 1
        keys = tuple(
            ResultKey(result.batch_id, result.task_id, result.node_id, result.status)
            for result in self.done[cursor.xmin :]
            if result.batch_id in batches
        )
        return ResultPage(keys, FeedCursor(len(self.done)))

    def results(self, keys: Sequence[ResultKey]) -> list[Result]:
        self.calls["results"] += 1
        found = {result.task_id: result for result in self.done}
        return [found[key.task_id] for key in keys]

    def wait(self, seconds: float) -> None:
        self.calls["wait"] += 1
        self.now += min(seconds, 1.0)
        if self.open and not self.idle:
            self.do_one()

    def cancel(self, batches: Sequence[BatchId]) -> int:
        self.calls["cancel"] += 1
        ended = [task for task in self.open if task.batch_id in batches]
        self.open = [task for task in self.open if task.batch_id not in batches]
        for task in ended:
            self.finish(task, ResultStatus.CANCELLED)
        return len(ended)

    def plan_rounds(self, rounds: int) -> None:
        self.planned.append(rounds)

    def commit_round(self, checkpoint: Checkpoint) -> None:
        self._check(checkpoint.objects)
        number = checkpoint.next_sequence - 1
        taken = self.recorded.get(number)
        if taken is None or taken.kind is not StepKind.CHECKPOINT:
            self._record(number, StepKind.CHECKPOINT, checkpoint.delivered)
        if checkpoint.round not in {saved.round for saved in self.checkpoints}:
            self.checkpoints.append(checkpoint)

    def last_checkpoint(self) -> Checkpoint | None:
        return max(self.checkpoints, key=lambda saved: saved.round, default=None)

    def record_metrics(self, round: int, metrics: Mapping[str, float], node_id: NodeId | None = None) -> None:  # noqa: A002
        assert node_id is None
        self.metrics |= {(round, name): value for name, value in metrics.items()}

    def put_artifact(self, name: str, object_hash: ObjectHash) -> None:
        self._check([object_hash])
        self.artifacts[name] = object_hash

    def close(self) -> None:
        self.calls["close"] += 1


def nodes_of(app: ClientApp, config: Mapping[str, ConfigValue], node_ids: Sequence[int]) -> Answer:
    """Answers as SuperNodes do that host `node_ids` and run `app`."""
    states = {node_id: RecordDict() for node_id in node_ids}

    def answer(message: Message) -> RecordDict | Error:
        node_id = message.metadata.dst_node_id
        context = Context(
            run_id=7,
            node_id=node_id,
            node_config={"partition-id": list(node_ids).index(node_id), "num-partitions": len(node_ids)},
            state=states[node_id],
            run_config=dict(config),
        )
        try:
            reply = app(message, context)
        except Exception as exc:  # noqa: BLE001 - whatever an app raises is its node's error
            return Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, str(exc))
        return reply.error if reply.has_error() else reply.content

    return answer
