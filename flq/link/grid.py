"""Grid on the database: the door for a ServerApp, bound to one attempt of one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from random import Random
from typing import Concatenate, ParamSpec, TypeVar

from flq import log
from flq.errors import AttemptFenced, DatabaseUnreachable, QuotaExceeded
from flq.link import artifacts, bundles, checkpoints, events, nodes, notify, objects, runs, steps, tasks
from flq.link import results as replies
from flq.link.batches import push as push_batch
from flq.link.batches import reissue as reissue_tasks
from flq.link.database import Database
from flq.link.metrics import record_in as record_metrics
from flq.wire.grid import Checkpoint, GridNode, Push, Pushed, Result, ResultKey, ResultPage, Step
from flq.wire.ids import BatchId, NodeId, ObjectHash, RunId, TaskId
from flq.wire.runs import FeedCursor, RunInfo

_JITTER = Random()  # noqa: S311 - spreads the load. The global generator is the app's: its draws must not shift

logger = log.get(__name__)

OUTAGE_SECONDS = 300.0
"""How long a ServerApp waits for a database that went away, before it gives up."""

ROOM_SECONDS = 0.5
"""How often a push that a quota keeps waiting looks for room."""

RETRY_SECONDS = 0.1
RETRY_MOST_SECONDS = 5.0

P = ParamSpec("P")
T = TypeVar("T")


def _patient(
    method: Callable[Concatenate[DbGrid, P], T],
) -> Callable[Concatenate[DbGrid, P], T]:
    """Repeat a call over a lost connection: every one of them can be repeated without doing anything twice."""

    @wraps(method)
    def repeated(self: DbGrid, /, *args: P.args, **kwargs: P.kwargs) -> T:
        give_up = time.monotonic() + OUTAGE_SECONDS
        delay = RETRY_SECONDS
        while True:
            try:
                return method(self, *args, **kwargs)
            except DatabaseUnreachable as exc:
                if time.monotonic() + delay > give_up:
                    raise
                if delay == RETRY_SECONDS:
                    logger.warning("%s; the run waits for it", exc)
                time.sleep(delay * _JITTER.uniform(0.5, 1.0))
                delay = min(delay * 2, RETRY_MOST_SECONDS)

    return repeated


class DbGrid:
    """Implements `flq.wire.grid.Grid`. Calls wait for a database that is away, up to five minutes."""

    def __init__(self, dsn: str, *, run_id: RunId, token: int, attempt: int) -> None:
        self.attempt = attempt
        self._db = Database(dsn, application=f"flq serverapp {run_id}", by_key=True)
        self._run_id = run_id
        self._token = token
        self._listener = self._listen()

    @_patient
    def _listen(self) -> notify.Listener:
        application = f"flq serverapp {self._run_id}"
        return notify.Listener(self._db.dsn, notify.results_channel(self._run_id), application=application)

    @_patient
    def run(self) -> RunInfo:
        """See `Grid.run`."""
        return runs.info(self._db, self._run_id)

    @_patient
    def bundle(self, bundle: ObjectHash) -> bytes:
        """The run's packed app. Raises `ObjectUnknown` or `ObjectCorrupt`."""
        return bundles.read(self._db, bundle)

    @_patient
    def begin(self, threads: Mapping[str, str] | None = None) -> None:
        """Starting → running: the app's `main` is entered now. Raises `AttemptFenced`.

        `threads` says how many the libraries of linear algebra use, by variable; it stands in the run's history.
        """
        with self._db.transaction() as tx:
            begun = (
                runs.begin(tx, self._run_id, self._token, threads) or runs.lock(tx, self._run_id).token == self._token
            )
        if not begun:
            raise AttemptFenced

    @_patient
    def nodes(self) -> list[GridNode]:
        """See `Grid.nodes`."""
        return nodes.usable(self._db, self._run_id)

    def push(self, push: Push) -> Pushed:
        """See `Grid.push`. While the run has too many open tasks, waits for some to end: each has a deadline."""
        told = False
        while True:
            try:
                return self._push(push)
            except QuotaExceeded as exc:
                if not exc.passes:
                    raise
                if not told:
                    logger.warning("%s; the push waits for open tasks to end", exc)
                    self._note_quota(exc)
                told = True
                time.sleep(ROOM_SECONDS * _JITTER.uniform(0.5, 1.0))

    @_patient
    def _note_quota(self, exc: QuotaExceeded) -> None:
        """Whoever asks what the run waits for is told."""
        with self._db.transaction() as tx:
            checkpoints.hold_attempt(tx, self._run_id, self._token)
            events.record(tx, self._run_id, "over quota", actor="serverapp", reason=exc.message)

    @_patient
    def _push(self, push: Push) -> Pushed:
        return push_batch(self._db, run_id=self._run_id, token=self._token, push=push)

    @_patient
    def steps(self) -> list[Step]:
        """See `Grid.steps`."""
        return steps.recorded(self._db, self._run_id)

    @_patient
    def node_list(self, node_list: bytes) -> tuple[GridNode, ...]:
        """See `Grid.node_list`."""
        return steps.node_list(self._db, self._run_id, node_list)

    @_patient
    def reissue(self, batch_id: BatchId, task_ids: Sequence[TaskId], ttl: float) -> int:
        """See `Grid.reissue`."""
        return reissue_tasks(
            self._db, run_id=self._run_id, token=self._token, batch_id=batch_id, task_ids=task_ids, ttl=ttl
        )

    @_patient
    def arrived(self, batches: Sequence[BatchId], cursor: FeedCursor) -> ResultPage:
        """See `Grid.arrived`."""
        return replies.arrived(self._db, batches, cursor)

    @_patient
    def results(self, keys: Sequence[ResultKey]) -> list[Result]:
        """See `Grid.results`."""
        return replies.read(self._db, keys)

    @_patient
    def wait(self, seconds: float) -> None:
        """See `Grid.wait`. The listener registered when the door was opened: nothing goes unheard."""
        self._listener.wait(seconds)

    @_patient
    def cancel(self, batches: Sequence[BatchId]) -> int:
        """See `Grid.cancel`."""
        with self._db.transaction() as tx:
            checkpoints.hold_attempt(tx, self._run_id, self._token)
            return tasks.cancel_batches(tx, self._run_id, batches, reason="the ServerApp stopped waiting for it")

    @_patient
    def plan_rounds(self, rounds: int) -> None:
        """See `Grid.plan_rounds`."""
        with self._db.connection() as connection:
            if not runs.plan_rounds(connection, self._run_id, self._token, rounds):
                raise AttemptFenced

    @_patient
    def commit_round(self, checkpoint: Checkpoint) -> None:
        """See `Grid.commit_round`."""
        checkpoints.commit(self._db, run_id=self._run_id, token=self._token, checkpoint=checkpoint)

    @_patient
    def last_checkpoint(self) -> Checkpoint | None:
        """See `Grid.last_checkpoint`."""
        return checkpoints.last(self._db, self._run_id)

    @_patient
    def record_metrics(
        self,
        round: int,  # noqa: A002 - the word of the field
        metrics: Mapping[str, float],
        node_id: NodeId | None = None,
    ) -> None:
        """See `Grid.record_metrics`."""
        with self._db.transaction() as tx:
            checkpoints.hold_attempt(tx, self._run_id, self._token)
            record_metrics(tx, self._run_id, round, metrics, node_id)

    @_patient
    def put_artifact(self, name: str, object_hash: ObjectHash) -> None:
        """See `Grid.put_artifact`."""
        artifacts.put(self._db, run_id=self._run_id, token=self._token, name=name, object_hash=object_hash)

    @_patient
    def missing(self, hashes: Iterable[ObjectHash]) -> frozenset[ObjectHash]:
        """See `Objects.missing`."""
        return objects.missing(self._db, hashes)

    @_patient
    def put(self, object_hash: ObjectHash, data: memoryview) -> None:
        """See `Objects.put`."""
        objects.put(self._db, object_hash, data)

    @_patient
    def read(self, object_hash: ObjectHash, into: memoryview) -> None:
        """See `Objects.read`."""
        objects.read(self._db, object_hash, into)

    @_patient
    def size(self, object_hash: ObjectHash) -> int:
        """See `Objects.size`."""
        return objects.size(self._db, object_hash)

    def close(self) -> None:
        """See `Grid.close`."""
        self._listener.close()
        self._db.close()
