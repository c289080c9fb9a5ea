"""`flq verify`: the invariants of the state, as SQL on a live database. A statement returns what breaks its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flq.errors import ObjectCorrupt, ObjectUnknown
from flq.link import objects, stores
from flq.link.database import Database, Tx
from flq.link.sql import load
from flq.wire.ids import ObjectHash
from flq.wire.status import RUN_TRANSITIONS

SQL: Final = load("verify")

INVARIANTS: Final = {
    "one_lease_per_task": "a task has at most one lease",
    "leases_have_holders": "a claimed task says by whom, when and with which token",
    "open_or_finished": "no task is both open and finished",
    "tasks_are_complete": "every task of a batch is open or finished",
    "finished_runs_have_no_tasks": "a finished run has no open tasks",
    "attempts_rise": "the attempts at a task rise from 1 without a gap",
    "results_have_attempts": "a result that a node sent stands on an attempt of that node",
    "states_have_replies": "every version of client state was left by an accepted reply of its node",
    "no_orphans": "every row has the rows that it belongs to",
    "steps_are_whole": "every push and every commit is a numbered step of its run",
    "commits_follow": "rounds are committed one behind the other, each with a later step",
    "deliveries_exist": "the replies and lists of nodes that an app was given exist",
    "delivered_once": "a result is delivered to the app at most once on each branch",
    "time_outs_stay": "a task that the app was told has no reply has none",
    "references_have_holders": "what holds an object exists",
    "objects_are_complete": "every object that is referred to is there, with all of its bytes",
    "nothing_is_left_over": "no object and no chunk is out of the collector's sight",
    "bundles_are_whole": "every bundle has its hash",
    "drawn_transitions": "runs have gone along the drawn graph only",
    "one_active_attempt": "a run at work has one open attempt, the newest; another has none",
    "tokens_match": "the token of a run is that of its open attempt",
    "partitions": "partitions have the bounds that they should have, and are there ahead of time",
}
"""Every invariant by the name of its statement."""

PAYLOADS = "payloads_have_their_hash"
FILES = "files_are_there"

LIMIT = 100
"""How many offending rows are looked for."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one invariant. `broken` are the first offending rows, in words; `more`: there are others."""

    invariant: str
    meaning: str
    broken: tuple[str, ...]
    more: bool = False

    @property
    def holds(self) -> bool:
        """Whether nothing breaks it."""
        return not self.broken


def run(db: Database, *, payloads: bool = False) -> list[Finding]:
    """Look at all invariants in one snapshot; with `payloads` also read every object and verify its hash."""
    with db.transaction() as tx:
        tx.execute(SQL["begin_verify"])
        tx.execute(SQL["verify_timeouts"])
        found = look(tx)
    found.append(_finding(FILES, "every object in a directory has its file", _lost_files(db)))
    if payloads:
        found.append(_finding(PAYLOADS, "every object has the hash that it is stored under", _corrupt(db)))
    return found


def look(tx: Tx) -> list[Finding]:
    """Look at all invariants of the database, as this transaction sees it."""
    values = {
        "limit": LIMIT + 1,
        "froms": [before.value for before, _ in RUN_TRANSITIONS],
        "tos": [after.value for _, after in RUN_TRANSITIONS],
    }
    found = []
    for name, meaning in INVARIANTS.items():
        found.append(_finding(name, meaning, [told for (told,) in tx.execute(SQL[name], values).fetchall()]))
    return found


def _finding(name: str, meaning: str, rows: Sequence[str]) -> Finding:
    return Finding(name, meaning, tuple(rows[:LIMIT]), more=len(rows) > LIMIT)


def _lost_files(db: Database) -> list[str]:
    """Objects in directories whose file is not there, or has another size."""
    with db.connection() as connection:
        rows = connection.execute(SQL["objects_in_directories"]).fetchall()
    lost = []
    for name, size, directory in rows:
        path = stores.DirectoryStore(Path(directory)).path(ObjectHash(bytes(name)))
        try:
            there = path.stat().st_size
        except OSError as exc:
            lost.append(f"{path}: {exc.strerror}")
            continue
        if there != size:
            lost.append(f"{path} has {there} of {size} bytes")
    return lost


def _corrupt(db: Database) -> list[str]:
    with db.connection() as connection:
        rows = connection.execute(objects.SQL["all_objects"]).fetchall()
    told = []
    for name, size in rows:
        try:
            objects.read(db, ObjectHash(bytes(name)), memoryview(bytearray(size)))
        except ObjectUnknown:
            continue  # it was collected meanwhile
        except ObjectCorrupt as exc:
            told.append(exc.message)
    return told
