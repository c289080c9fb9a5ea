"""Artifacts: the files that a run stores."""

from __future__ import annotations

from typing import Final

from flq.errors import ArtifactUnknown, UsageError
from flq.link import objects, quotas
from flq.link.checkpoints import hold_attempt
from flq.link.database import Database
from flq.link.sql import load
from flq.wire.ids import ObjectHash, RunId
from flq.wire.runs import ArtifactRow

SQL: Final = load("artifacts")


def put(db: Database, *, run_id: RunId, token: int, name: str, object_hash: ObjectHash) -> None:
    """Make a stored object the run's artifact `name`.

    Raises `AttemptFenced`, `ObjectsMissing`, `QuotaExceeded` or `UsageError`.
    """
    if not name or "/" in name or "\\" in name or "\0" in name or name in {".", ".."}:
        raise UsageError(f"{name!r} cannot be the name of an artifact", hint="a file name without a folder")
    with db.transaction() as tx:
        hold_attempt(tx, run_id, token)
        objects.hold(tx, [object_hash])
        tx.execute(SQL["put_artifact"], {"run_id": run_id, "name": name, "object_hash": object_hash})
        quotas.check(tx, run_id, objects=1)


def listing(db: Database, run_id: RunId) -> list[ArtifactRow]:
    """The artifacts of a run, by name."""
    with db.connection() as connection:
        rows = connection.execute(SQL["list_artifacts"], {"run_id": run_id}).fetchall()
    return [
        ArtifactRow(name=name, hash=ObjectHash(bytes(found)), size=size, created_at=created_at)
        for name, found, size, created_at in rows
    ]


def find(db: Database, run_id: RunId, name: str) -> ArtifactRow:
    """One artifact of a run. Raises `ArtifactUnknown`."""
    known = listing(db, run_id)
    for row in known:
        if row.name == name:
            return row
    names = ", ".join(row.name for row in known) or "none"
    raise ArtifactUnknown(f"the run has no artifact {name!r}", hint=f"it has: {names}")
