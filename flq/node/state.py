"""The client state of hosted nodes on disk: what survives between the tasks of a run, and restarts of the SuperNode.

Below `state/<run id>/<node name>/`:

- `<task id>.state` is a promoted version: the state that the accepted reply of this task has left. A task starts from
  the newest version of an *earlier* task, so that a second attempt of it starts from what the first one started from.
- `<task id>-<token>.staged` is what a worker has written under a claim whose reply has not been accepted yet.
- `<task id>-<token>.reply` is that reply. Should this process be killed between the SuperLink's acceptance and the
  promotion, the next one hands the reply in again before it claims anything: `accepted` or `duplicate` promote the
  state, `fenced` drops it. The files are not synced to the disk: a process may die at any moment, the machine may
  lose what it had not written yet.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Collection
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from flq.errors import WireError
from flq.log import get
from flq.node.frames import FrameReader, pack
from flq.node.tasks import HeldTask
from flq.wire.fleet import Reply, TaskKey
from flq.wire.ids import BatchId, NodeId, ObjectHash, RunId, TaskId
from flq.wire.status import ResultStatus

log = get(__name__)

KEPT_VERSIONS = 3
"""Versions kept per node and run: a task whose lease was lost may come back after later ones were done."""

KEEP_SECONDS = 24 * 3600.0
"""How long the state of an ended run is kept: `flq resume` and `flq fork` may want it."""

_STATE, _STAGED, _REPLY = ".state", ".staged", ".reply"


class ClientStates:
    """The versions of `context.state`. For the main loop only; workers read and write the files that they are told."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._versions: dict[Path, list[TaskId]] = {}
        self._folders: dict[tuple[RunId, NodeId], Path] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def base(self, task: HeldTask) -> Path | None:
        """The version from which the task starts: None if no earlier task of its node and run has left any."""
        folder = self._of(task)
        earlier = [version for version in self._known(folder) if version < task.task_id]
        return folder / f"{earlier[-1]}{_STATE}" if earlier else None

    def staging(self, task: HeldTask) -> str:
        """Where the task's worker is to write the new state. The folder may not exist yet."""
        return f"{self._of(task)}/{task.task_id}-{task.key.token}{_STAGED}"

    def note_reply(self, staged: Path, reply: Reply) -> None:
        """Keep the reply beside the staged state until the verdict on it is known."""
        key = asdict(reply.key)
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
        folder = staged.parent
        known = self._known(folder)
        with contextlib.suppress(FileNotFoundError):  # the run was purged, or the file was promoted before
            staged.replace(folder / f"{task_id}{_STATE}")
            if task_id not in known:
                known.append(task_id)
                known.sort()
        while len(known) > KEPT_VERSIONS:
            (folder / f"{known.pop(0)}{_STATE}").unlink(missing_ok=True)
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

    def purge(self, ended: Collection[RunId]) -> None:
        """Remove the state of ended runs that nothing has changed for a day."""
        for run_id in ended:
            folder = self._folder / str(run_id)
            if time.time() - _last_change(folder) >= KEEP_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
            for known in [known for known in self._versions if known.parent == folder]:
                del self._versions[known]
            for key in [key for key in self._folders if key[0] == run_id]:
                del self._folders[key]

    def _of(self, task: HeldTask) -> Path:
        key = task.run_id, task.node_id
        folder = self._folders.get(key)
        if folder is None:
            name = quote(task.node_name, safe="")
            name = f"%2E{name[1:]}" if name.startswith(".") else name
            folder = self._folders[key] = self._folder / str(task.run_id) / name
        return folder

    def _known(self, folder: Path) -> list[TaskId]:
        """The promoted versions of a node and run, oldest first."""
        known = self._versions.get(folder)
        if known is None:
            names = []
            with contextlib.suppress(FileNotFoundError):
                names = [entry.name for entry in os.scandir(folder)]
            known = sorted(TaskId(int(name.removesuffix(_STATE))) for name in names if name.endswith(_STATE))
            self._versions[folder] = known
        return known


def _last_change(folder: Path) -> float:
    try:
        return max(entry.stat().st_mtime for entry in [folder, *folder.iterdir()])
    except FileNotFoundError:
        return time.time()


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
        started_at=datetime.fromisoformat(header["started_at"]),
        ended_at=datetime.fromisoformat(header["ended_at"]),
    )
