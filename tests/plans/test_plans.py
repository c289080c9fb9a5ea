"""How the hot statements are done: by key, in few pages, whatever the statistics say and whoever holds a snapshot."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from flq.link import batches, results, runs, tasks
from flq.link.database import Database, Tx, connect
from tests.integration import link_acts as act
from tests.integration.conftest import doors
from tests.integration.link_acts import Doors
from tests.plans.explain import Plan, explain

__all__ = ["doors"]

NODES = 20
RUNS = 4
TASKS = 250  # on each node, of each run
AGGREGATES = (tasks, results, batches)

FILL = """
INSERT INTO flq_state.batch (run_id, branch, sequence, attempt, kind, group_id, tasks, deadline, content_hash, manifest)
SELECT r.run_id, 0, 1000 + s, 1, 'train', '1', %(nodes)s, clock_timestamp() + interval '1 h', '', ''
FROM flq_state.run r, generate_series(1, %(tasks)s) s;
"""
OPEN = """
INSERT INTO flq_state.task (node_id, run_id, batch_id)
SELECT n.node_id, b.run_id, b.batch_id
FROM flq_state.batch b, flq_state.node n
WHERE b.sequence >= 1000
ORDER BY b.batch_id
"""
FINISHED = """
INSERT INTO flq_state.result (batch_id, task_id, run_id, node_id, status, manifest, attempt, token)
SELECT b.batch_id, 1000000 + row_number() OVER (), b.run_id, n.node_id, 'ok', '', 1, 1
FROM flq_state.batch b, flq_state.node n
WHERE b.sequence >= 1000
"""


def statement(name: str) -> str:
    return str(next(aggregate.SQL[name] for aggregate in AGGREGATES if name in aggregate.SQL))


def claim_values(nodes: Sequence[int], known: Mapping[int, int], *, beyond: int) -> dict[str, Any]:
    """What a claim for `nodes` is asked, behind the cursors `known` of runs."""
    pairs = [(node, run, after) for node in nodes for run, after in known.items()]
    return {
        "node_ids": list(nodes), "epochs": [1] * len(nodes), "clocks": [0.0] * len(nodes),
        "beyonds": [beyond] * len(nodes),
        "known_batches": [],
        "known_nodes": [node for node, *_ in pairs], "known_runs": [run for _, run, _ in pairs],
        "known_after": [after for *_, after in pairs], "known_tags": [0.0] * len(pairs),
        "per_node": 2, "total": 100, "token": 9, "process_id": uuid.uuid4(), "lease": 15.0, "max_attempts": 10,
    }  # fmt: skip


def reply_values(count: int) -> dict[str, Any]:
    """The columns of a submit beside its keys."""
    return {
        "statuses": ["ok"] * count, "error_codes": [None] * count, "error_texts": [None] * count,
        "manifests": [b"m"] * count, "metrics": [None] * count, "payload_bytes": [0] * count, "started": [0.0] * count,
        "ended": [0.0] * count, "object_tasks": [], "objects": [],
    }  # fmt: skip


class Filled:
    """A database with open tasks and results, and examples of what the hot statements are asked."""

    def __init__(self, doors: Doors, db: Database, statistics: str) -> None:
        _, self.hosted = doors.fleet(*(f"n{i}" for i in range(NODES)))
        claims = [doors.grid(runs.submit(db, act.submission()))[1] for _ in range(RUNS)]
        self.token = claims[0].token
        self.run_id = claims[0].run.run_id
        self.last_run = claims[-1].run.run_id
        with db.connection() as connection:
            if statistics == "of the empty tables":
                connection.execute("VACUUM ANALYZE")
            connection.execute(FILL, {"nodes": NODES, "tasks": TASKS})
            connection.execute(OPEN)
            connection.execute(FINISHED)
            if statistics == "of the filled tables":
                connection.execute("VACUUM ANALYZE")
        self.nodes = [node.node_id for node in self.hosted]

    def keys(self, tx: Tx, count: int = 10) -> dict[str, Any]:
        """Claimed tasks, all over the place."""
        rows = tx.execute(
            "UPDATE flq_state.task t SET token = 7, epoch = 1, attempt = 1, process_id = %s,"
            " claimed_at = clock_timestamp(), lease_until = clock_timestamp() + interval '1 h'"
            " FROM (SELECT node_id, run_id, task_id FROM flq_state.task ORDER BY hashint8(task_id) LIMIT %s) x"
            " WHERE (t.node_id, t.run_id, t.task_id) = (x.node_id, x.run_id, x.task_id)"
            " RETURNING t.node_id, t.run_id, t.task_id, t.batch_id, t.token",
            [uuid.uuid4(), count],
        ).fetchall()
        names = ("node_ids", "run_ids", "task_ids", "batch_ids", "tokens")
        return dict(zip(names, (list(column) for column in zip(*rows, strict=True)), strict=True))

    def claim(self, nodes: int, *, known: Mapping[int, int] | None = None) -> dict[str, Any]:
        """A claim for some nodes: a full look, or one behind cursors."""
        return claim_values(self.nodes[:nodes], known or {}, beyond=self.last_run if known else 0)

    def values(self, tx: Tx, name: str) -> dict[str, Any]:
        """What a statement is asked."""
        if name == "claim":
            return self.claim(NODES)
        keys = self.keys(tx)
        extra: dict[str, dict[str, Any]] = {
            "submit": reply_values(10),
            "renew": {"lease": 15.0},
            "end_tasks": {"status": "cancelled", "error_code": 3, "error_text": "x"},
            "arrived": {"xmin": 0, "batch_ids": keys["batch_ids"][:1]},
            "open_tasks_of_batches": {"run_id": self.run_id},
            "overdue_tasks": {"limit": 1000},
            "push": {
                "run_id": self.run_id, "token": self.token, "node_ids": self.nodes, "sequence": 1, "kind": "train",
                "checked": True, "group_id": "1", "round": 1, "ttl": 60.0, "content_hash": b"x", "manifest": b"m",
                "manifests": [], "objects": [], "delivered": Jsonb([]),
            },
            "reissue": {"run_id": self.run_id, "token": self.token, "batch_id": keys["batch_ids"][0], "ttl": 60.0},
            "pushed_before": {"run_id": self.run_id, "token": self.token, "sequence": 1000},
        }  # fmt: skip
        return {**keys, **extra.get(name, {})}


@pytest.fixture(params=["none", "of the empty tables", "of the filled tables"])
def filled(request: pytest.FixtureRequest, doors: Doors, db: Database) -> Filled:
    return Filled(doors, db, request.param)


BY_KEY = {
    # statement: pages it may touch, the indexes by which it may read tasks and results
    "claim": (2500, {"pk_task"}),
    "renew": (200, {"pk_task"}),
    "submit": (700, {"pk_task"}),
    "release": (300, {"pk_task"}),
    "end_tasks": (700, {"pk_task"}),
    "stored_before": (100, {"pk_result"}),
    "note_late": (200, {"pk_result", "pk_task"}),
    "arrived": (60, {"ix_result_batch_id_xid", "pk_result"}),
    "replies": (150, {"pk_result"}),
    "push": (500, set()),
    "pushed_before": (60, {"ix_task_batch_id", "pk_result", "ix_result_batch_id_xid"}),
    "reissue": (100, {"pk_result", "ix_result_batch_id_xid"}),
    "open_tasks_of_batches": (400, {"ix_task_batch_id"}),
    "overdue_tasks": (9000, {"ix_task_batch_id"}),
    "own_manifests": (100, set()),
}


def indexes(plan: Plan) -> set[str]:
    """The indexes by which tasks and results are read; a scan of a whole table stands for itself."""
    found = set()
    for table in ("task", "result"):
        for scan in plan.scans(table):
            if scan.kind == "Bitmap Heap Scan":
                continue  # its index is in the node below
            name = scan.index or scan.kind
            # a partition's index is called after the partition and its columns
            if table == "result" and scan.index:
                name = "pk_result" if scan.index.endswith("pkey") else "ix_result_batch_id_xid"
            found.add(name)
    return found


def test_hot_statements_go_by_key_whatever_the_statistics(filled: Filled, db: Database):
    wrong = []
    for name, (pages, allowed) in BY_KEY.items():
        for generic in (True, False):
            with db.connection() as tx, tx.transaction(force_rollback=True):
                plan = explain(tx, statement(name), filled.values(tx, name), generic=generic)
            if indexes(plan) - allowed or plan.buffers > pages:
                wrong.append(f"{name} generic={generic} {indexes(plan)} {plan.buffers} pages")
    assert not wrong, "\n".join(wrong)


LONGEST = 4096
"""psycopg parses a statement of more bytes anew with every call."""


def test_statements_that_are_planned_while_tables_are_small_go_by_key_too(doors: Doors, dsn: str, db: Database):
    _, hosted = doors.fleet("a", "b", "c")
    grid, _ = doors.grid()
    pushed = [grid.push(act.push(*[node.node_id for node in hosted])) for _ in range(20)]
    with db.connection() as connection:
        connection.execute("VACUUM ANALYZE")
    hot = Database(dsn, application="test", by_key=True)
    keys: dict[str, Any] = {
        "node_ids": [node.node_id for node in hosted], "run_ids": [1] * 3, "task_ids": list(pushed[0].task_ids),
        "batch_ids": [pushed[0].batch_id] * 3, "tokens": [7] * 3,
    }  # fmt: skip
    claim = claim_values(keys["node_ids"], {}, beyond=0)
    wrong = {}
    with closing(hot), hot.connection() as tx:
        for name, values in {
            "claim": claim, "claim_again": claim, "renew": {**keys, "lease": 15.0}, "release": keys,
            "stored_before": keys, "replies": keys, "submit": {**keys, **reply_values(3)},
        }.items():  # fmt: skip
            with tx.transaction(force_rollback=True):
                plan = explain(tx, statement(name), values, generic=True)
            wrong[name] = {
                t for t in ("task", "batch", "result", "node") for s in plan.scans(t) if s.kind == "Seq Scan"
            }
    assert {name: tables for name, tables in wrong.items() if tables} == {}


@pytest.mark.parametrize("known", ["nothing", "no tasks", "a few tasks"])
def test_a_submit_reads_its_tasks_in_the_order_in_which_they_are_sorted(
    doors: Doors, dsn: str, db: Database, known: str
):
    """It locks as it reads: with a plan that begins with the table, as the tasks lie there, two could deadlock."""
    _, hosted = doors.fleet("a", "b", "c")
    grid, _ = doors.grid()
    if known == "no tasks":
        with db.connection() as connection:
            connection.execute("VACUUM ANALYZE flq_state.task")
    pushed = grid.push(act.push(*[node.node_id for node in hosted]))
    if known == "a few tasks":
        with db.connection() as connection:
            connection.execute("VACUUM ANALYZE flq_state.task")
    keys = {
        "node_ids": [node.node_id for node in hosted], "run_ids": [1] * 3, "task_ids": list(pushed.task_ids),
        "batch_ids": [pushed.batch_id] * 3, "tokens": [7] * 3,
    }  # fmt: skip
    hot = Database(dsn, application="test", by_key=True)
    with closing(hot), hot.connection() as tx:
        plans = [
            explain(tx, statement("submit"), {**keys, **reply_values(3)}, generic=generic) for generic in (True, False)
        ]
    reads = [node for plan in plans for node in plan.nodes() if node.get("Alias") == "t" and "Index Name" in node]
    assert [(node["Index Name"], node["Actual Loops"]) for node in reads] == [("pk_task", 3)] * 2
    assert all("s.task_id" in node["Index Cond"] for node in reads)


def test_hot_statements_are_short_enough_to_be_parsed_once():
    assert {name: len(statement(name).encode()) for name in BY_KEY if len(statement(name).encode()) > LONGEST} == {}


@pytest.fixture
def snapshot(dsn: str) -> Iterator[Tx]:
    """A long transaction of somebody else: what it could still see no vacuum removes."""
    holder = connect(dsn, application="analyst")
    with holder.transaction():
        holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        holder.execute("SELECT count(*) FROM flq_state.task").fetchone()
        yield holder
    holder.close()


@pytest.mark.parametrize("generic", [True, False])
def test_a_claim_behind_its_cursor_does_not_walk_over_the_dead(
    doors: Doors, db: Database, snapshot: Tx, *, generic: bool
):
    filled = Filled(doors, db, "none")
    with db.connection() as tx:
        rows = tx.execute("DELETE FROM flq_state.task WHERE run_id = %s RETURNING task_id", [filled.run_id]).fetchall()
        tx.execute(
            "INSERT INTO flq_state.task (node_id, run_id, batch_id) SELECT node_id, %s, 1 FROM flq_state.node",
            [filled.run_id],
        )
        tx.execute("VACUUM ANALYZE flq_state.task")
        last = max(task for (task,) in rows)
        cursor = explain(tx, tasks.SQL["claim"], filled.claim(1, known={filled.run_id: last}), generic=generic)
        full = explain(tx, tasks.SQL["claim"], filled.claim(1), generic=generic)
    assert cursor.buffers < 80
    assert full.buffers > cursor.buffers
    assert indexes(cursor) == {"pk_task"}


def test_submits_and_renewals_under_a_held_snapshot_go_by_key(doors: Doors, db: Database, snapshot: Tx):
    filled = Filled(doors, db, "of the empty tables")
    with db.connection() as tx:
        tx.execute("DELETE FROM flq_state.task WHERE task_id % 2 = 0".replace("%", "%%"), [])
        tx.execute("ANALYZE flq_state.task")
        for name in ("submit", "renew", "release"):
            with tx.transaction(force_rollback=True):
                plan = explain(tx, statement(name), filled.values(tx, name), generic=True)
            assert indexes(plan) == {"pk_task"}
            assert plan.buffers <= BY_KEY[name][0]
