"""A Fleet in memory, for tests of the SuperNode alone, with switches for what a SuperLink can do to it.

It knows nothing of the database: that the real door behaves like this is what the conformance suite is for.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from flq.apps.bundle import pack
from flq.apps.project import load_project
from flq.errors import DatabaseUnreachable, ObjectsMissing, ObjectUnknown
from flq.node.options import SuperNodeOptions
from flq.node.supernode import SuperNode
from flq.wire.codec import decode, encode
from flq.wire.fleet import (
    LEASE_SECONDS,
    Claimed,
    HostedNode,
    Lease,
    NodeSpec,
    Renewed,
    Reply,
    StateBase,
    StateVersion,
    TaskKey,
    Wake,
)
from flq.wire.ids import BatchId, NodeId, ObjectHash, RunId, TaskId
from flq.wire.records import RecordDict
from flq.wire.runs import ConfigValue, LogLine, ProcessSpec, RunInfo
from flq.wire.status import ResultStatus, RunStatus, Verdict
from tests.waiting import eventually


@dataclass(slots=True, eq=False)
class OpenTask:
    """A task that has no result yet."""

    key: TaskKey
    kind: str
    group: str
    manifest: bytes
    created_at: float
    deadline: float
    attempt: int = 0
    lease_until: float = 0.0
    epoch: int = 0
    branch: int = 0


@dataclass(slots=True)
class _Node:
    hosted: HostedNode
    process: str


@dataclass(slots=True)
class FleetDouble:
    """Implements `flq.wire.fleet.Fleet`; the methods after `disconnect` are the tests' own."""

    unreachable: bool = False
    lose_answers: set[str] = field(default_factory=set)  # these calls go through, their answers do not
    calls: Counter[str] = field(default_factory=Counter)
    objects: dict[ObjectHash, bytes] = field(default_factory=dict)
    results: dict[TaskId, Reply] = field(default_factory=dict)
    lines: list[tuple[RunId, LogLine]] = field(default_factory=list)
    submissions: list[int] = field(default_factory=list)
    released: list[TaskId] = field(default_factory=list)
    reads: Counter[ObjectHash] = field(default_factory=Counter)
    versions: list[StateVersion] = field(default_factory=list)
    given_up: set[TaskId] = field(default_factory=set)  # what these have left does not count any more
    forked: dict[RunId, tuple[RunId, TaskId]] = field(default_factory=dict)  # the parent, and its last task that counts
    unneeded: set[TaskId] = field(default_factory=set)  # nothing starts from what these have left
    stopped: set[RunId] = field(default_factory=set)
    confirmed: list[tuple[RunId, NodeId]] = field(default_factory=list)
    before_put: Callable[[], object] = lambda: None
    before_submit: Callable[[Sequence[Reply]], object] = lambda _replies: None
    open: dict[TaskId, OpenTask] = field(default_factory=dict)
    specs: dict[str, NodeSpec] = field(default_factory=dict)
    connected: bool = False
    _nodes: dict[str, _Node] = field(default_factory=dict)
    _runs: dict[RunId, RunInfo] = field(default_factory=dict)
    _bundles: dict[ObjectHash, bytes] = field(default_factory=dict)
    _process: str = ""
    _change: threading.Condition = field(default_factory=threading.Condition)
    _wake_tasks: bool = False
    _wake_runs: bool = False
    _numbers: int = 100

    # --- Fleet

    def connect(self, process: ProcessSpec, nodes: Sequence[NodeSpec]) -> list[HostedNode]:
        with self._call("connect"):
            self._process = process.process_id
            self.connected = True
            self.specs = {spec.name: spec for spec in nodes}
            return [self._host(spec.name, process.process_id) for spec in nodes]

    def heartbeat(self) -> None:
        with self._call("heartbeat"):
            pass

    def claim(self, nodes: Collection[NodeId], *, per_node: int, total: int, token: int) -> Claimed:
        with self._call("claim"):
            mine = self._mine()
            now = time.time()
            leases: list[Lease] = []
            taken: Counter[NodeId] = Counter()
            for task in sorted(self.open.values(), key=lambda task: task.key.task_id):
                node_id = task.key.node_id
                if node_id not in nodes or node_id not in mine:
                    continue
                again = task.key.token == token
                free = task.lease_until <= now or task.epoch < mine[node_id]
                if not again and (not free or taken[node_id] >= per_node or len(leases) >= total):
                    continue
                if not again:
                    task.attempt += 1
                    task.key = TaskKey(
                        node_id=node_id,
                        run_id=task.key.run_id,
                        task_id=task.key.task_id,
                        batch_id=task.key.batch_id,
                        token=token,
                    )
                task.lease_until = now + LEASE_SECONDS
                task.epoch = mine[node_id]
                taken[node_id] += 1
                leases.append(_lease(task))
            return Claimed(tuple(leases), superseded=frozenset(set(nodes) - set(mine)))

    def renew(self, keys: Sequence[TaskKey]) -> Renewed:
        with self._call("renew"):
            mine = self._mine()
            lost = set()
            for key in keys:
                task = self.open.get(key.task_id)
                if task is None or task.key.token != key.token:
                    lost.add(key.task_id)
                else:
                    task.lease_until = time.time() + LEASE_SECONDS
            return Renewed(frozenset(lost), superseded=frozenset({key.node_id for key in keys} - set(mine)))

    def release(self, keys: Sequence[TaskKey]) -> None:
        with self._call("release"):
            for key in keys:
                task = self.open.get(key.task_id)
                if task is not None and task.key.token == key.token:
                    task.lease_until = 0.0
                    self.released.append(key.task_id)
                    self._wake_tasks = True
                    self._change.notify_all()

    def submit(self, replies: Sequence[Reply]) -> dict[TaskId, Verdict]:
        self.before_submit(replies)
        with self._call("submit"):
            missing = {name for reply in replies for name in reply.objects if name not in self.objects}
            if missing:
                raise ObjectsMissing(frozenset(missing))
            self.submissions.append(len(replies))
            return {reply.key.task_id: self._submit(reply) for reply in replies}

    def state_bases(self, keys: Sequence[TaskKey]) -> dict[TaskId, StateBase]:
        with self._call("state_bases"):
            return {
                key.task_id: StateBase(
                    self._base(key.run_id, key.node_id, key.task_id),
                    all(found.task_id < key.task_id for found in self.versions if found.run_id == key.run_id),
                )
                for key in keys
            }

    def unneeded_states(self, versions: Collection[StateVersion]) -> frozenset[StateVersion]:
        with self._call("unneeded_states"):
            return frozenset(version for version in versions if version.task_id in self.unneeded)

    def wait(self, seconds: float) -> Wake:
        with self._call("wait"):
            mine = self._process

            def over() -> bool:
                return self.unreachable or not self.connected or self._process != mine

            self._change.wait_for(lambda: self._wake_tasks or self._wake_runs or over(), timeout=seconds)
            self._check()
            if over():
                return Wake()  # the process has said goodbye; its successor is to be woken
            wake = Wake(tasks=self._wake_tasks, runs=self._wake_runs)
            self._wake_tasks = self._wake_runs = False
            return wake

    def run(self, run_id: RunId) -> RunInfo:
        with self._call("run"):
            return self._runs[run_id]

    def bundle(self, bundle: ObjectHash) -> bytes:
        with self._call("bundle"):
            return self._bundles[bundle]

    def ended(self, runs: Collection[RunId]) -> frozenset[RunId]:
        with self._call("ended"):
            return frozenset(self.stopped & set(runs))

    def confirm_ended(self, pairs: Collection[tuple[RunId, NodeId]]) -> None:
        with self._call("confirm_ended"):
            self.confirmed += pairs

    def append_logs(self, lines: Sequence[tuple[RunId, LogLine]]) -> None:
        with self._call("append_logs"):
            self.lines.extend(lines)

    def missing(self, hashes: Iterable[ObjectHash]) -> frozenset[ObjectHash]:
        with self._call("missing"):
            return frozenset(name for name in hashes if name not in self.objects)

    def put(self, object_hash: ObjectHash, data: memoryview) -> None:
        self.before_put()
        with self._call("put"):
            assert hashlib.sha256(data).digest() == object_hash
            self.objects[object_hash] = bytes(data)

    def read(self, object_hash: ObjectHash, into: memoryview) -> None:
        with self._call("read"):
            if object_hash not in self.objects:
                raise ObjectUnknown
            into[:] = self.objects[object_hash]
            self.reads[object_hash] += 1

    def size(self, object_hash: ObjectHash) -> int:
        with self._call("size"):
            return len(self.objects[object_hash])

    def disconnect(self) -> None:
        with self._call("disconnect"):
            self.connected = False
            self._change.notify_all()

    # --- for tests

    def add_run(self, project: Path, *, seed: int = 7, config: Mapping[str, ConfigValue] | None = None) -> RunId:
        packed = pack(load_project(project))
        return self.add_bundle(packed.data, packed.hash, seed=seed, config=config)

    def add_bundle(
        self, data: bytes, named: ObjectHash, *, seed: int = 7, config: Mapping[str, ConfigValue] | None = None
    ) -> RunId:
        with self._change:
            run_id = RunId(self._number())
            self._bundles[named] = data
            self._runs[run_id] = RunInfo(
                run_id=run_id,
                name=f"run-{run_id}",
                app="app",
                bundle=named,
                config=config or {},
                seed=seed,
                status=RunStatus.RUNNING,
            )
            return run_id

    def push(
        self,
        run_id: RunId,
        nodes: Iterable[str],
        content: RecordDict | None = None,
        *,
        kind: str = "train",
        group: str = "1",
        ttl: float = 600.0,
        branch: int = 0,
    ) -> list[TaskId]:
        """One batch: the same message for all nodes."""
        encoded = encode(content or RecordDict())
        with self._change:
            self.objects |= {name: bytes(view) for name, view in encoded.objects.items()}
            batch_id = BatchId(self._number())
            pushed = []
            for name in nodes:
                node_id = self._nodes[name].hosted.node_id
                task_id = TaskId(self._number())
                key = TaskKey(node_id=node_id, run_id=run_id, task_id=task_id, batch_id=batch_id, token=0)
                now = time.time()
                self.open[task_id] = OpenTask(key, kind, group, encoded.manifest, now, now + ttl, branch=branch)
                pushed.append(task_id)
            self._wake_tasks = True
            self._change.notify_all()
        return pushed

    def stop(self, run_id: RunId) -> None:
        with self._change:
            self.stopped.add(run_id)
            self._wake_runs = True
            self._change.notify_all()

    def resume(self, run_id: RunId) -> None:
        with self._change:
            self.stopped.discard(run_id)

    def cancel(self, task_id: TaskId) -> None:
        """End a task without its SuperNode."""
        with self._change:
            del self.open[task_id]

    def lapse(self, task_id: TaskId) -> None:
        """Let a lease run out, as in a long outage."""
        with self._change:
            self.open[task_id].lease_until = 0.0
            self._wake_tasks = True
            self._change.notify_all()

    def take_over(self, *names: str) -> None:
        """Another process hosts these nodes from now on."""
        with self._change:
            for name in names:
                self._host(name, "another process")
            self._wake_tasks = True
            self._change.notify_all()

    def poke(self) -> None:
        """End a wait for no reason, as the poll does."""
        with self._change:
            self._wake_tasks = self._wake_runs = True
            self._change.notify_all()

    def fail(self, *, unreachable: bool) -> None:
        """Begin or end an outage."""
        with self._change:
            self.unreachable = unreachable
            self._change.notify_all()

    def result(self, task_id: TaskId, *, timeout: float = 20.0) -> Reply:
        eventually(lambda: task_id in self.results, timeout=timeout, what=f"the result of task {task_id}")
        return self.results[task_id]

    def content(self, task_id: TaskId, *, timeout: float = 20.0) -> RecordDict:
        reply = self.result(task_id, timeout=timeout)
        assert reply.status is ResultStatus.OK, reply.error_text
        return decode(reply.manifest, lambda name, _size: memoryview(bytearray(self.objects[name])))

    def error(self, task_id: TaskId, *, timeout: float = 20.0) -> tuple[int | None, str]:
        reply = self.result(task_id, timeout=timeout)
        assert reply.status is ResultStatus.ERROR
        return reply.error_code, reply.error_text or ""

    def output(self, run_id: RunId) -> list[tuple[str, str, str]]:
        with self._change:
            return [(line.source, line.level, line.text) for found, line in self.lines if found == run_id]

    # --- inside

    @contextmanager
    def _call(self, name: str) -> Iterator[None]:
        with self._change:
            self.calls[name] += 1
            self._check()
            yield
            if name in self.lose_answers:
                raise DatabaseUnreachable("the connection broke before the answer came")

    def _check(self) -> None:
        if self.unreachable:
            raise DatabaseUnreachable("connection refused")

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _host(self, name: str, process: str) -> HostedNode:
        known = self._nodes.get(name)
        if known is None:
            known = _Node(HostedNode(node_id=NodeId(self._number()), name=name, epoch=1), process)
            self._nodes[name] = known
        elif known.process != process:
            hosted = known.hosted
            known.hosted = HostedNode(node_id=hosted.node_id, name=name, epoch=hosted.epoch + 1)
            known.process = process
        return known.hosted

    def _mine(self) -> dict[NodeId, int]:
        return {
            node.hosted.node_id: node.hosted.epoch for node in self._nodes.values() if node.process == self._process
        }

    def _base(self, run_id: RunId, node_id: NodeId, below: int) -> StateVersion | None:
        earlier = [
            version
            for version in self.versions
            if (version.run_id, version.node_id) == (run_id, node_id)
            and version.task_id < below
            and version.task_id not in self.given_up
        ]
        if not earlier and run_id in self.forked:
            parent, last = self.forked[run_id]
            return self._base(parent, node_id, last + 1)
        return max(earlier, key=lambda version: version.task_id, default=None)

    def _submit(self, reply: Reply) -> Verdict:
        key = reply.key
        task = self.open.get(key.task_id)
        if task is not None and task.key.token == key.token and key.node_id in self._mine():
            del self.open[key.task_id]
            self.results[key.task_id] = reply
            if reply.state:
                self.versions.append(StateVersion(run_id=key.run_id, node_id=key.node_id, task_id=key.task_id))
            return Verdict.ACCEPTED
        stored = self.results.get(key.task_id)
        return Verdict.DUPLICATE if stored is not None and stored.key.token == key.token else Verdict.FENCED


def _lease(task: OpenTask) -> Lease:
    return Lease(
        key=task.key,
        attempt=task.attempt,
        branch=task.branch,
        kind=task.kind,
        group=task.group,
        created_at=task.created_at,
        deadline=task.deadline,
        manifest=bytes(bytearray(task.manifest)),  # each row brings its own copy
    )


@dataclass(slots=True)
class Running:
    """A SuperNode that works in a thread of the test's process."""

    node: SuperNode
    exit_code: int | None = None
    error: BaseException | None = None


@contextmanager
def supernode(fleet: FleetDouble, options: SuperNodeOptions, *, connected: bool = True) -> Iterator[Running]:
    """Run a SuperNode beside the test; it is stopped at the end."""
    running = Running(SuperNode(fleet, options))

    def work() -> None:
        try:
            running.exit_code = running.node.run()
        except BaseException as exc:  # noqa: BLE001 - shown by the test
            running.error = exc

    thread = threading.Thread(target=work, name="supernode")
    thread.start()
    try:
        if connected:
            eventually(lambda: fleet.connected or running.error, what="the SuperNode to connect")
        yield running
    finally:
        if thread.is_alive():
            running.node.stop()
        thread.join(15)
        if thread.is_alive():
            running.node.stop()
            thread.join(15)
        assert not thread.is_alive(), "the SuperNode did not end"
        if running.error is not None:
            raise running.error
