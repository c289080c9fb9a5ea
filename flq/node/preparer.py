"""Gets everything that a task needs onto this host before the task starts: its run's bundle, its message's objects."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flq.apps.bundle import unpack
from flq.errors import BundleError, CodecError, ObjectCorrupt, ObjectUnknown, Unreachable
from flq.log import get
from flq.node.cache import ObjectCache
from flq.node.lane import Lane
from flq.node.outage import Backoff, Outage
from flq.node.protocol import lacks_room
from flq.node.reactor import Reactor
from flq.node.tasks import HeldTask, Stage
from flq.wire.codec import object_sizes
from flq.wire.fleet import Fleet
from flq.wire.ids import BatchId, ObjectHash, RunId
from flq.wire.message import ErrorCode
from flq.wire.runs import RunInfo

log = get(__name__)

THREADS = 2
KNOWN_MANIFESTS = 32
KEPT_BUNDLES = 32


@dataclass(frozen=True, slots=True)
class RunFiles:
    """A run that is ready to be worked for: what is known of it, and the folder of its unpacked bundle."""

    info: RunInfo
    folder: Path


Ready = Callable[[HeldTask], None]
Failed = Callable[[HeldTask, int, str], None]


class Preparer:
    """Fetches each bundle and each object once, whatever the number of tasks that wait for it.

    `ready` or `failed` (with an error code and its text) is called for each task that `prepare` was called with,
    unless it is forgotten before.
    """

    def __init__(
        self,
        fleet: Fleet,
        reactor: Reactor,
        outage: Outage,
        *,
        cache: ObjectCache,
        bundles: Path,
        ready: Ready,
        failed: Failed,
    ) -> None:
        self._fleet = fleet
        self._reactor = reactor
        self._outage = outage
        self._cache = cache
        self._bundles = bundles
        self._ready = ready
        self._failed = failed
        self._lane = Lane("flq-fetch", reactor, threads=THREADS)
        _remove_old_bundles(bundles)
        self._runs: dict[RunId, RunFiles | None] = {}  # None while it is on its way
        self._waiting: dict[RunId, dict[HeldTask, None]] = {}
        self._fetching: dict[ObjectHash, list[HeldTask]] = {}
        self._manifests: OrderedDict[BatchId, tuple[bytes, dict[ObjectHash, int]]] = OrderedDict()

    @property
    def runs(self) -> set[RunId]:
        """The runs whose bundles are here or on their way."""
        return set(self._runs)

    def files(self, run_id: RunId) -> RunFiles:
        """The files of a run of which a task was said to be ready."""
        files = self._runs[run_id]
        assert files is not None  # noqa: S101 - no task is ready before its run is
        return files

    def prepare(self, task: HeldTask) -> None:
        """See to it that the task's bundle and objects get here."""
        try:
            task.objects = self._sizes(task)
        except CodecError as exc:
            self._failed(task, ErrorCode.MESSAGE_UNAVAILABLE, f"the message cannot be read: {exc}")
            return
        task.absent = self._cache.pin(task.objects)
        self._waiting.setdefault(task.run_id, {})[task] = None
        for object_hash in list(task.absent):
            self._fetch(task, object_hash)
        if task.run_id not in self._runs:
            self._runs[task.run_id] = None
            self._open(task.run_id, Backoff())
        self._look_at(task)

    def forget(self, task: HeldTask) -> None:
        """The task is over, or no longer ours: what it needed may go."""
        self._stop_waiting(task)
        self._cache.unpin(task.objects)
        task.objects = {}

    def forget_run(self, run_id: RunId) -> None:
        """The run is over."""
        if self._runs.get(run_id) is not None:
            del self._runs[run_id]

    def close(self) -> None:
        """End the threads."""
        self._lane.close()

    def _sizes(self, task: HeldTask) -> dict[ObjectHash, int]:
        """The objects of the task's message; the message of a batch is read once if all nodes get the same."""
        manifest = task.lease.manifest
        known = self._manifests.get(task.key.batch_id)
        if known is None or known[0] != manifest:
            known = manifest, object_sizes(manifest)
            self._manifests[task.key.batch_id] = known
            if len(self._manifests) > KNOWN_MANIFESTS:
                self._manifests.popitem(last=False)
        return dict(known[1])

    def _look_at(self, task: HeldTask) -> None:
        if task.absent or self._runs.get(task.run_id) is None or task.stage is not Stage.PREPARING:
            return
        self._stop_waiting(task)
        self._ready(task)

    def _stop_waiting(self, task: HeldTask) -> None:
        waiting = self._waiting.get(task.run_id)
        if waiting is not None:
            waiting.pop(task, None)
            if not waiting:
                del self._waiting[task.run_id]

    def _fail(self, task: HeldTask, code: int, text: str) -> None:
        self._stop_waiting(task)
        self._failed(task, code, text)

    def _fetch(self, task: HeldTask, object_hash: ObjectHash) -> None:
        if object_hash in self._fetching:
            self._fetching[object_hash].append(task)
            return
        self._fetching[object_hash] = [task]
        self._call_fetch(object_hash, task.objects[object_hash], Backoff())

    def _call_fetch(self, object_hash: ObjectHash, size: int, backoff: Backoff) -> None:
        def failed(exc: Exception) -> None:
            if isinstance(exc, Unreachable):
                self._outage.failed(exc, what="fetching an object")
                self._reactor.after(backoff.next(), lambda: self._call_fetch(object_hash, size, backoff))
                return
            if lacks_room(exc) and any(self._is_waiting(task) for task in self._fetching[object_hash]):
                self._wait_for_room(exc, backoff, lambda: self._call_fetch(object_hash, size, backoff))
                return
            log.warning("object %s cannot be fetched: %s", object_hash.hex(), exc)
            text = f"the message's object {object_hash.hex()} cannot be fetched: {exc}"
            for task in self._fetching.pop(object_hash):
                if self._is_waiting(task):
                    self._fail(task, ErrorCode.MESSAGE_UNAVAILABLE, text)

        def done(_nothing: None) -> None:
            self._outage.succeeded()
            for task in self._fetching.pop(object_hash):
                task.absent.discard(object_hash)
                if self._is_waiting(task):
                    self._look_at(task)

        self._lane.call(lambda: self._cache.fetch(self._fleet, object_hash, size), done=done, failed=failed)

    def _wait_for_room(self, exc: Exception, backoff: Backoff, again: Callable[[], None]) -> None:
        """The disk is full: tasks wait, as long as their deadlines let them."""
        if backoff.fresh:
            log.warning("this disk is full, trying again until it is not: %s", exc)
        self._reactor.after(backoff.next(), again)

    def _is_waiting(self, task: HeldTask) -> bool:
        return task in self._waiting.get(task.run_id, {})

    def _open(self, run_id: RunId, backoff: Backoff) -> None:
        def failed(exc: Exception) -> None:
            if isinstance(exc, Unreachable):
                self._outage.failed(exc, what="fetching a bundle")
                self._reactor.after(backoff.next(), lambda: self._open(run_id, backoff))
                return
            if lacks_room(exc) and self._waiting.get(run_id):
                self._wait_for_room(exc, backoff, lambda: self._open(run_id, backoff))
                return
            log.warning("run %d cannot be worked for: %s", run_id, exc)
            refused = isinstance(exc, BundleError | ObjectUnknown | ObjectCorrupt)
            self._runs.pop(run_id, None)  # the next task tries again: a full disk may have been cleared
            for task in list(self._waiting.get(run_id, ())):
                self._fail(
                    task,
                    ErrorCode.INVALID_FAB if refused else ErrorCode.LOAD_CLIENT_APP_EXCEPTION,
                    f"the run's bundle cannot be used: {exc}",
                )

        def done(files: RunFiles) -> None:
            self._outage.succeeded()
            self._runs[run_id] = files
            for task in list(self._waiting.get(run_id, ())):
                self._look_at(task)

        self._lane.call(lambda: self._files(run_id), done=done, failed=failed)

    def _files(self, run_id: RunId) -> RunFiles:
        info = self._fleet.run(run_id)
        folder = unpack(self._fleet.bundle(info.bundle), info.bundle, self._bundles)
        os.utime(folder)
        return RunFiles(info, folder)


def _remove_old_bundles(bundles: Path) -> None:
    """Keep the bundles that were used last. Called before any worker has started, so that none works in one."""
    with contextlib.suppress(OSError):
        folders = sorted(bundles.iterdir(), key=lambda folder: folder.stat().st_mtime, reverse=True)
        for folder in folders[KEPT_BUNDLES:]:
            shutil.rmtree(folder, ignore_errors=True)
