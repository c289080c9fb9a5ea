"""How versions of client state are found: by key, in few pages, however many a long run has left."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any

import pytest

from flq.link import states
from flq.link.database import Database, connect
from tests.integration.conftest import doors
from tests.integration.link_acts import Doors
from tests.plans.explain import Plan, explain

__all__ = ["doors"]

NODES = 20
ROUNDS = 1000

STEPS = """
INSERT INTO flq_state.step (run_id, branch, sequence, kind, attempt)
SELECT %(run_id)s, 0, s, (CASE s %% 2 WHEN 0 THEN 'push' ELSE 'checkpoint' END)::flq_state.step_kind, 1
FROM generate_series(0, 2 * %(rounds)s - 1) s
"""
BATCHES = """
INSERT INTO flq_state.batch (run_id, branch, sequence, attempt, kind, group_id, tasks, deadline, content_hash, manifest)
SELECT %(run_id)s, 0, 2 * s, 1, 'train', '1', %(nodes)s, clock_timestamp() + interval '1 h', '', ''
FROM generate_series(0, %(rounds)s - 1) s
"""
CHECKPOINTS = """
INSERT INTO flq_state.checkpoint (run_id, round, branch, attempt, next_sequence, first_sequence, state)
SELECT %(run_id)s, s + 1, 0, 1, 2 * s + 2, 0, CASE WHEN s >= %(rounds)s - 3 THEN ''::bytea END
FROM generate_series(0, %(rounds)s - 1) s
"""
VERSIONS = """
INSERT INTO flq_state.client_state (run_id, node_id, task_id, batch_id)
SELECT b.run_id, n.node_id, b.batch_id * 1000 + n.node_id, b.batch_id
FROM flq_state.batch b, flq_state.node n
"""


class Filled:
    """A long run whose nodes have left a version in each round."""

    def __init__(self, doors: Doors, db: Database, statistics: str) -> None:
        _, hosted = doors.fleet(*(f"n{i}" for i in range(NODES)))
        _, claim = doors.grid()
        values = {"run_id": claim.run.run_id, "nodes": NODES, "rounds": ROUNDS}
        with db.connection() as connection:
            if statistics == "of the empty tables":
                connection.execute("VACUUM ANALYZE")
            for statement in (STEPS, BATCHES, CHECKPOINTS, VERSIONS):
                connection.execute(statement, values)
            if statistics == "of the filled tables":
                connection.execute("VACUUM ANALYZE")
            rows = connection.execute("SELECT min(batch_id), max(batch_id) FROM flq_state.batch").fetchone()
        assert rows is not None
        self.run_id, self.nodes = claim.run.run_id, [node.node_id for node in hosted]
        self.first, self.last = rows

    def bases(self) -> dict[str, Any]:
        """What the tasks of the last round start from."""
        tasks = [self.last * 1000 + node for node in self.nodes]
        batches = [self.last] * NODES
        return {
            "run_ids": [self.run_id] * NODES, "node_ids": self.nodes, "task_ids": tasks, "batch_ids": batches,
        }  # fmt: skip

    def needed(self, batch_id: int) -> dict[str, Any]:
        """Whether the versions of a round are needed."""
        tasks = [batch_id * 1000 + node for node in self.nodes]
        return {
            "run_ids": [self.run_id] * NODES, "node_ids": self.nodes, "task_ids": tasks, "since_checkpoint": 16,
            "ended": 3600.0,
        }  # fmt: skip


@pytest.fixture(params=["none", "of the empty tables", "of the filled tables"])
def filled(request: pytest.FixtureRequest, doors: Doors, db: Database) -> Filled:
    return Filled(doors, db, request.param)


def ways(plan: Plan) -> set[tuple[str, str | None]]:
    """The indexes by which versions and batches are read."""
    return {(scan.table, scan.index) for table in ("client_state", "batch") for scan in plan.scans(table)}


@pytest.mark.parametrize("generic", [True, False])
def test_versions_are_found_by_key(filled: Filled, db: Database, *, generic: bool):
    asked: list[tuple[str, Mapping[str, Any], int]] = [
        ("bases", filled.bases(), 400),
        ("needed", filled.needed(filled.last), 800),
        ("needed", filled.needed(filled.first), 1500),
    ]
    wrong = []
    for name, values, pages in asked:
        with db.connection() as tx:
            plan = explain(tx, states.SQL[name], values, generic=generic)
        if plan.buffers > pages or ways(plan) - {("client_state", "pk_client_state"), ("batch", "pk_batch")}:
            wrong.append(f"{name}: {plan.buffers} pages, {ways(plan)}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("generic", [True, False])
def test_of_the_checkpoints_the_newest_are_looked_at(filled: Filled, db: Database, *, generic: bool):
    with closing(connect(db.dsn, application="flq test", by_key=True)) as tx:
        plan = explain(tx, states.SQL["needed"], filled.needed(filled.last), generic=generic)
    assert plan.scans("checkpoint")
    assert plan.rows_looked_at("checkpoint") < ROUNDS / 100
