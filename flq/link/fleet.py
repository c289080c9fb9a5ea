"""Fleet on the database: the door for a SuperNode in the same data centre."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping, Sequence

from flq.errors import LinkError, NodeUnknown
from flq.link import bundles, events, logs, nodes, notify, objects, processes, results, runs, schema, states, tasks
from flq.link.cursors import Cursors
from flq.link.database import Database
from flq.wire.fleet import Claimed, HostedNode, NodeSpec, Renewed, Reply, StateBase, StateVersion, TaskKey, Wake
from flq.wire.ids import NodeId, ObjectHash, RunId, TaskId
from flq.wire.runs import LogLine, ProcessSpec, RunInfo
from flq.wire.status import Verdict

NEVER_CONNECTED = "this SuperNode has not connected"


class DbFleet:
    """Implements `flq.wire.fleet.Fleet`. Heartbeats and renewals have connections of their own."""

    def __init__(self, dsn: str) -> None:
        schema.check(dsn)
        self._db = Database(dsn, application="flq supernode", size=10, by_key=True)
        self._beats = Database(dsn, application="flq supernode heartbeat", size=2, by_key=True)
        self._listener: notify.Listener | None = None
        self._process: ProcessSpec | None = None
        self._epochs: Mapping[NodeId, int] = {}
        self._batches = tasks.Batches()
        self._cursors = Cursors()
        self._claiming = threading.Lock()

    def connect(self, process: ProcessSpec, nodes_: Sequence[NodeSpec]) -> list[HostedNode]:
        """See `Fleet.connect`. Listens before anything else, so that no push goes unheard."""
        if self._listener is None:
            self._listener = notify.Listener(
                self._db.dsn, notify.TASKS, notify.RUNS, application="flq supernode listener"
            )
        hosted = nodes.connect(self._db, process, nodes_)
        with self._claiming:
            self._process = process
            self._epochs = {node.node_id: node.epoch for node in hosted}
            self._cursors.host(self._epochs)
            self._batches = tasks.Batches()
        return hosted

    def heartbeat(self) -> None:
        """See `Fleet.heartbeat`."""
        if not processes.beat(self._beats, self._connected().process_id):
            raise LinkError("the SuperLink does not know this process any more")

    def claim(self, nodes: Collection[NodeId], *, per_node: int, total: int, token: int) -> Claimed:
        """See `Fleet.claim`."""
        with self._claiming:
            return tasks.claim(
                self._db,
                process_id=self._connected().process_id,
                epochs=self._epochs_of(nodes),
                cursors=self._cursors,
                per_node=per_node,
                total=total,
                token=token,
                known=self._batches,
            )

    def renew(self, keys: Sequence[TaskKey]) -> Renewed:
        """See `Fleet.renew`."""
        return tasks.renew(self._beats, keys, self._epochs_of({key.node_id for key in keys}))

    def release(self, keys: Sequence[TaskKey]) -> None:
        """See `Fleet.release`."""
        tasks.release(self._db, keys)
        for key in keys:
            self._cursors.lower(key.run_id, key.task_id)

    def submit(self, replies: Sequence[Reply]) -> dict[TaskId, Verdict]:
        """See `Fleet.submit`."""
        return results.submit(self._db, replies)

    def state_bases(self, keys: Sequence[TaskKey]) -> dict[TaskId, StateBase]:
        """See `Fleet.state_bases`."""
        self._epochs_of({key.node_id for key in keys})
        return states.bases(self._db, keys)

    def unneeded_states(self, versions: Collection[StateVersion]) -> frozenset[StateVersion]:
        """See `Fleet.unneeded_states`."""
        self._epochs_of({version.node_id for version in versions})
        return states.unneeded(self._db, versions)

    def wait(self, seconds: float) -> Wake:
        """See `Fleet.wait`."""
        if self._listener is None:
            raise LinkError(NEVER_CONNECTED)
        notices = self._listener.wait(seconds)
        if not notices:  # the poll that stands behind all notices
            self._cursors.look_everywhere()
        if notify.LOST in notices:
            self._cursors.look_everywhere()
            return Wake(tasks=True, runs=True)
        for notice in notices:
            if notice.channel == notify.TASKS:
                self._cursors.hear(notice.payload)
        channels = {notice.channel for notice in notices}
        return Wake(tasks=notify.TASKS in channels, runs=notify.RUNS in channels)

    def run(self, run_id: RunId) -> RunInfo:
        """See `Fleet.run`."""
        return runs.info(self._db, run_id)

    def bundle(self, bundle: ObjectHash) -> bytes:
        """See `Fleet.bundle`."""
        return bundles.read(self._db, bundle)

    def ended(self, runs_: Collection[RunId]) -> frozenset[RunId]:
        """See `Fleet.ended`."""
        ended = runs.ended(self._db, runs_)
        self._cursors.forget(ended)
        return ended

    def confirm_ended(self, pairs: Collection[tuple[RunId, NodeId]]) -> None:
        """See `Fleet.confirm_ended`."""
        events.confirm_stopped(self._db, pairs, process_id=self._connected().process_id)

    def append_logs(self, lines: Sequence[tuple[RunId, LogLine]]) -> None:
        """See `Fleet.append_logs`."""
        logs.append(self._db, lines)

    def missing(self, hashes: Iterable[ObjectHash]) -> frozenset[ObjectHash]:
        """See `Objects.missing`."""
        return objects.missing(self._db, hashes)

    def put(self, object_hash: ObjectHash, data: memoryview) -> None:
        """See `Objects.put`."""
        objects.put(self._db, object_hash, data)

    def read(self, object_hash: ObjectHash, into: memoryview) -> None:
        """See `Objects.read`."""
        objects.read(self._db, object_hash, into)

    def size(self, object_hash: ObjectHash) -> int:
        """See `Objects.size`."""
        return objects.size(self._db, object_hash)

    def disconnect(self) -> None:
        """See `Fleet.disconnect`."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            processes.retire(self._db, process.process_id)
        finally:
            if self._listener is not None:
                self._listener.close()
            self._beats.close()
            self._db.close()

    def _epochs_of(self, nodes: Iterable[NodeId]) -> dict[NodeId, int]:
        try:
            return {node_id: self._epochs[node_id] for node_id in nodes}
        except KeyError as exc:
            raise NodeUnknown(f"this SuperNode does not host node {exc.args[0]}") from None

    def _connected(self) -> ProcessSpec:
        if self._process is None:
            raise LinkError(NEVER_CONNECTED)
        return self._process
