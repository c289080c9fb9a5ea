"""The client state of hosted nodes on disk: what survives between the tasks of a run, and restarts of the SuperNode.

Below `state/<run id>/<node name>/`:

- `<task id>.state` is a promoted version: the state that the accepted reply of this task has left. Which version a task
  starts from says the store; one that is not here is missing, and never replaced by another one.
- `<task id>-<token>.staged` is what a worker has written under a claim whose reply has not been accepted yet.
- `<task id>-<token>.reply` is that reply. Should this process be killed between the SuperLink's acceptance and the
  promotion, the next one hands the reply in again before it claims anything: `accepted` or `duplicate` promote the
  state, `fenced` drops it. The files are not synced to the disk: a process may die at any moment, the machine may
  lose what it had not written yet.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import shutil
import time
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

from flq.errors import WireError
from flq.log import get
from flq.node.frames import FrameReader, pack
from flq.node.tasks import HeldTask
from flq.wire.fleet import Reply, TaskKey
from flq.wire.ids import BatchId, NodeId, ObjectHash, RunId, TaskId
from flq.wire.status import ResultStatus

log = get(__name__)

KEPT_VERSIONS = 3
"""Versions kept per node and run without asking whether they are needed, unless nothing has changed for a day."""

QUIET_SECONDS = 24 * 3600.0
"""How long nothing has changed in a folder before it is asked about, or removed, as a whole."""

_STATE, _STAGED, _REPLY = ".state", ".staged", ".reply"


class Version(NamedTuple):
    """A version on this disk."""

    run_id: RunId
    node_name: str
    task_id: TaskId


@dataclass(slots=True)
class _Folder:
    """The versions of a node and run, oldest first, and those of them that `spare` gives out or has given out."""

    run_id: RunId
    node_name: str
    path: Path
    versions: list[TaskId]
    queued: set[TaskId] = field(default_factory=set)


class ClientStates:
    """The versions of `context.state`. For the main loop only; workers read and write the files that they are told."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._folders: dict[tuple[RunId, str], _Folder] = {}
        self._unasked: deque[Version] = deque()
        self._needed: deque[Version] = deque()
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, version: Version) -> Path:
        """Where a version lies, if it is on this disk."""
        return self._path_of(version.run_id, version.node_name) / f"{version.task_id}{_STATE}"

    def staging(self, task: HeldTask) -> str:
        """Where the task's worker is to write the new state. The folder may not exist yet."""
        name = f"{task.task_id}-{task.key.token}{_STAGED}"
        return f"{self._folder}/{task.run_id}/{_quoted(task.node_name)}/{name}"

    def note_reply(self, staged: Path, reply: Reply) -> None:
        """Keep the reply beside the staged state until the verdict on it is known."""
        key = reply.key._asdict()
        header = {
            "key": key,
            "status": reply.status,
            "objects": [object_hash.hex() for object_hash in sorted(reply.objects)],
            "metrics": dict(reply.metrics),
            "started_at": reply.started_at.isoformat(),
            "ended_at": reply.ended_at.isoformat(),
        }
        aside = staged.with_suffix(".aside")
        with aside.open("wb") as file:
            file.writelines(pack(header, reply.manifest))
        aside.replace(staged.with_suffix(_REPLY))

    def promote(self, staged: Path) -> None:
        """Make a staged state the version of its task."""
        task_id = TaskId(int(staged.name.partition("-")[0]))
        folder = self._of(RunId(int(staged.parent.parent.name)), unquote(staged.parent.name))
        with contextlib.suppress(FileNotFoundError):  # the file was promoted before
            staged.replace(staged.with_name(f"{task_id}{_STATE}"))
            self._add(folder, task_id)
        staged.with_suffix(_REPLY).unlink(missing_ok=True)

    def drop(self, staged: Path) -> None:
        """Forget a staged state whose task has passed to another claim."""
        staged.unlink(missing_ok=True)
        staged.with_suffix(_REPLY).unlink(missing_ok=True)

    def unsettled(self) -> list[tuple[Path, Reply]]:
        """The replies of an earlier process whose verdict it did not live to note; what it left besides is removed."""
        found = []
        for path in sorted(self._folder.glob("*/*/*-*")):
            if path.suffix == _REPLY and path.with_suffix(_STAGED).exists():
                try:
                    found.append((path.with_suffix(_STAGED), _read_reply(path)))
                except (OSError, WireError, ValueError, KeyError, TypeError) as exc:
                    log.warning("the kept reply %s cannot be read and is dropped: %s", path, exc)
                    self.drop(path.with_suffix(_STAGED))
            elif path.suffix != _STAGED or not path.with_suffix(_REPLY).exists():
                path.unlink(missing_ok=True)
        return found

    def runs(self) -> list[RunId]:
        """The runs of which there is state."""
        return [RunId(int(entry.name)) for entry in os.scandir(self._folder) if entry.name.isdecimal()]

    @property
    def unasked(self) -> int:
        """How many versions `spare` has not given out yet."""
        return len(self._unasked)

    def spare(self, limit: int) -> list[Version]:
        """Versions that may be removed unless something needs them, those first that nobody was asked about before.

        Hand each one to `remove`, or to `keep`.
        """
        found = [self._unasked.popleft() for _ in range(min(limit, len(self._unasked)))]
        return found + [self._needed.popleft() for _ in range(min(limit - len(found), len(self._needed)))]

    def keep(self, versions: Iterable[Version]) -> None:
        """These are needed, for now."""
        self._needed.extend(versions)

    def remove(self, versions: Iterable[Version]) -> None:
        """Nothing will start from these any more."""
        for version in versions:
            folder = self._of(version.run_id, version.node_name)
            self.path(version).unlink(missing_ok=True)
            folder.queued.discard(version.task_id)
            if version.task_id in folder.versions:
                folder.versions.remove(version.task_id)
            if not folder.versions:
                self._remove_folder(version.run_id, version.node_name)

    def survey(self, nodes: Collection[str]) -> None:
        """Look through the folders of these nodes for versions that may be removed."""
        for run_id in self.runs():
            for name in _names(self._folder / str(run_id)):
                if name in nodes:
                    folder = self._of(run_id, name)
                    kept = 0 if _is_quiet(folder.path) else KEPT_VERSIONS
                    self._queue(folder, folder.versions[: max(0, len(folder.versions) - kept)])

    def purge(self, run_id: RunId, nodes: Collection[str]) -> None:
        """Remove the state that nodes other than these have had in an ended run, if it has not changed for a day."""
        folder = self._folder / str(run_id)
        if _is_quiet(folder):
            for name in _names(folder):
                if name not in nodes and _is_quiet(self._path_of(run_id, name)):
                    shutil.rmtree(self._path_of(run_id, name), ignore_errors=True)
                    self._remove_folder(run_id, name)

    def _add(self, folder: _Folder, task_id: TaskId) -> None:
        place = bisect.bisect_left(folder.versions, task_id)
        if folder.versions[place : place + 1] != [task_id]:
            folder.versions.insert(place, task_id)
        self._queue(folder, folder.versions[-KEPT_VERSIONS - 1 : -KEPT_VERSIONS])

    def _queue(self, folder: _Folder, task_ids: Iterable[TaskId]) -> None:
        for task_id in task_ids:
            if task_id not in folder.queued:
                folder.queued.add(task_id)
                self._unasked.append(Version(folder.run_id, folder.node_name, task_id))

    def _path_of(self, run_id: RunId, name: str) -> Path:
        known = self._folders.get((run_id, name))
        return self._folder / str(run_id) / _quoted(name) if known is None else known.path

    def _of(self, run_id: RunId, name: str) -> _Folder:
        folder = self._folders.get((run_id, name))
        if folder is None:
            path = self._path_of(run_id, name)
            names: list[str] = []
            with contextlib.suppress(FileNotFoundError):
                names = [entry.name for entry in os.scandir(path)]
            versions = sorted(TaskId(int(name.removesuffix(_STATE))) for name in names if name.endswith(_STATE))
            folder = self._folders[run_id, name] = _Folder(run_id, name, path, versions)
        return folder

    def _remove_folder(self, run_id: RunId, name: str) -> None:
        """Remove the folder of a node and run that has no versions left, and that of the run if it is the last one."""
        path = self._path_of(run_id, name)
        self._folders.pop((run_id, name), None)
        for folder in (path, path.parent):
            with contextlib.suppress(OSError):  # something is staged there, or another node has something
                folder.rmdir()


def _quoted(name: str) -> str:
    """A node's name as the name of a folder."""
    quoted = quote(name, safe="")
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted


def _names(folder: Path) -> list[str]:
    """The nodes that have state in a run's folder."""
    try:
        return [unquote(entry.name) for entry in os.scandir(folder) if entry.is_dir()]
    except FileNotFoundError:
        return []


def _is_quiet(folder: Path) -> bool:
    """Whether nothing in a folder has been added or removed for a day."""
    try:
        return time.time() - folder.stat().st_mtime >= QUIET_SECONDS
    except FileNotFoundError:
        return False


def _read_reply(path: Path) -> Reply:
    (frame,) = FrameReader().feed(path.read_bytes())
    header = frame.header
    key = header["key"]
    return Reply(
        key=TaskKey(
            node_id=NodeId(key["node_id"]),
            run_id=RunId(key["run_id"]),
            task_id=TaskId(key["task_id"]),
            batch_id=BatchId(key["batch_id"]),
            token=int(key["token"]),
        ),
        status=ResultStatus(header["status"]),
        manifest=frame.body,
        objects=frozenset(ObjectHash(bytes.fromhex(text)) for text in header["objects"]),
        metrics=header["metrics"],
        state=True,
        started_at=datetime.fromisoformat(header["started_at"]),
        ended_at=datetime.fromisoformat(header["ended_at"]),
    )
