"""Versions of client state: which one a task starts from, and which ones nothing will start from any more.

The versions themselves lie on the nodes' disks.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from flq.link.arrays import Bigints, bigints
from flq.link.database import Database, Tx
from flq.link.sql import load
from flq.link.tasks import columns
from flq.wire.fleet import StateBase, StateVersion, TaskKey
from flq.wire.ids import NodeId, RunId, TaskId

SQL: Final = load("states")

KEPT_SINCE_CHECKPOINT = 16
"""So many versions of a node are kept at most because a repetition of the steps since the newest checkpoint, by another
attempt, may start from them."""

ENDED_SECONDS = 24 * 3600.0
"""How long the versions of a run are kept after its end, for `flq resume` and `flq fork`."""


def record(tx: Tx, keys: Sequence[TaskKey]) -> None:
    """Note that the accepted replies to these tasks have left a version each."""
    if keys:
        tx.execute(SQL["record"], columns(keys))


def bases(db: Database, keys: Sequence[TaskKey]) -> dict[TaskId, StateBase]:
    """What tasks start from. See `Fleet.state_bases`."""
    with db.connection() as connection:
        rows = connection.execute(SQL["bases"], columns(keys)).fetchall()
    found = {TaskId(task_id): StateBase(_version(*version), is_newest) for task_id, is_newest, *version in rows}
    return {key.task_id: found.get(key.task_id, StateBase(None)) for key in keys}


def unneeded(db: Database, versions: Collection[StateVersion]) -> frozenset[StateVersion]:
    """Those of `versions` that nothing will start from any more. See `Fleet.unneeded_states`."""
    values: dict[str, Bigints | float] = {
        "run_ids": bigints([version.run_id for version in versions]),
        "node_ids": bigints([version.node_id for version in versions]),
        "task_ids": bigints([version.task_id for version in versions]),
        "since_checkpoint": KEPT_SINCE_CHECKPOINT,
        "ended": ENDED_SECONDS,
    }
    with db.connection() as connection:
        rows = connection.execute(SQL["needed"], values).fetchall()
    return frozenset(versions) - {_version(*row) for row in rows}


def _version(run_id: int | None, node_id: int, task_id: int | None) -> StateVersion | None:
    if run_id is None or task_id is None:
        return None
    return StateVersion(run_id=RunId(run_id), node_id=NodeId(node_id), task_id=TaskId(task_id))
