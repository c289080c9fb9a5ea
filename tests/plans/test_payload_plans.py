"""What a commit and the collector cost does not grow with what is stored, nor with how long a run has gone on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flq.link import artifacts, checkpoints, collection, maintenance, objects, quotas
from flq.link.database import Database
from flq.local.state import Addresses
from tests.integration import link_acts as act
from tests.plans.explain import explain

ROUNDS = 400
NODES = 50
OBJECTS = 20_000

FILL = f"""
INSERT INTO flq_state.batch
    (run_id, branch, sequence, attempt, kind, group_id, round, tasks, deadline, content_hash, manifest)
SELECT r.run_id, 0, n, 1, 'train', '', n + 1, {NODES}, clock_timestamp() + interval '1 hour', 'x', 'm'
FROM flq_state.run r, generate_series(0, {ROUNDS - 1}) n ORDER BY n, r.run_id;

INSERT INTO flq_state.result (batch_id, task_id, run_id, node_id, status, manifest, attempt, token)
SELECT b.batch_id, b.batch_id * {NODES} + n, b.run_id, 2, 'ok', 'm', 1, 1
FROM flq_state.batch b, generate_series(0, {NODES - 1}) n;

INSERT INTO flq_state.checkpoint (run_id, round, branch, attempt, next_sequence, state)
SELECT r.run_id, n, 0, 1, n + 1, CASE WHEN n > {ROUNDS - 4} THEN 's'::bytea END
FROM flq_state.run r, generate_series(0, {ROUNDS - 1}) n;

INSERT INTO flq_state.object (object_hash, size)
SELECT sha256(n::text::bytea), 1000 FROM generate_series(1, {OBJECTS}) n;
INSERT INTO flq_state.object_pin (object_hash, pinned_until)
SELECT object_hash, clock_timestamp() + interval '1 hour' FROM flq_state.object;

-- all of the objects are held by the runs that are over, a few by the last round of each
INSERT INTO flq_state.object_ref (object_hash, holder, holder_id, run_id)
SELECT object_hash, 'checkpoint', row_number() OVER (), 1000 + row_number() OVER () %% 500 FROM flq_state.object;
INSERT INTO flq_state.object_ref (object_hash, holder, holder_id, run_id)
SELECT sha256((s.task_id %% {OBJECTS} + 1)::text::bytea), 'result', s.task_id, s.run_id
FROM flq_state.result s JOIN flq_state.batch b ON b.batch_id = s.batch_id WHERE b.sequence = {ROUNDS - 1};
UPDATE flq_state.object_pin SET pinned_until = clock_timestamp() - interval '1 s'
WHERE object_hash IN (SELECT sha256(n::text::bytea) FROM generate_series(1, 20) n);
"""


@pytest.fixture(scope="module")
def filled(servers: Addresses, admin: Callable[[str], None], template: str) -> Iterator[tuple[Database, int]]:
    """A database in which runs have gone on for long, and the first of them."""
    admin(f"CREATE DATABASE flq_payload_plans TEMPLATE {template}")
    db = Database(servers.dsn.replace("dbname=flq", "dbname=flq_payload_plans"), application="flq test")
    act.add_nodes(db, "a")
    runs = [act.start_attempt(db).run.run_id for _ in range(2)]
    with db.connection() as connection:
        for statement in FILL.replace("%%", "%").split(";"):
            if statement.strip():
                connection.execute(statement.encode())
        connection.execute("VACUUM ANALYZE")
    yield db, runs[0]
    db.close()
    admin("DROP DATABASE flq_payload_plans WITH (FORCE)")


CASES: dict[str, tuple[Any, dict[str, Any], int]] = {
    "release_rounds": (
        checkpoints,
        {"next_sequence": ROUNDS, "first_sequence": 0, "open_batches": [], "open_from": None},
        1000,
    ),
    "last_checkpoint": (checkpoints, {}, 20),
    "hold_attempt": (checkpoints, {"token": 1}, 20),
    "due_pins": (collection, {"limit": 200}, 60),
    "runs_with_payloads": (collection, {"limit": 50}, 2000),
    "old_uploads": (collection, {"limit": 8, "age": 86400.0}, 10),
    "find_object": (objects, {"object_hash": b"x" * 32}, 10),
    "present_objects": (objects, {"hashes": [b"x" * 32]}, 20),
    "quotas": (quotas, {}, 20),
    "list_artifacts": (artifacts, {}, 20),
    "last_runs": (maintenance, {}, 20),
}


@pytest.mark.parametrize("generic", [True, False], ids=["generic", "custom"])
@pytest.mark.parametrize("name", CASES)
def test_a_statement_touches_few_pages(filled: tuple[Database, int], name: str, *, generic: bool):
    db, run_id = filled
    module, values, most = CASES[name]
    with db.connection() as connection:
        plan = explain(connection, module.SQL[name], {"run_id": run_id, **values}, generic=generic)
    assert plan.buffers <= most, plan.root


@pytest.mark.parametrize("generic", [True, False], ids=["generic", "custom"])
@pytest.mark.parametrize("table", ["checkpoint", "batch"])
def test_a_commit_looks_at_the_newest_rounds_only(filled: tuple[Database, int], table: str, *, generic: bool):
    db, run_id = filled
    module, values, _ = CASES["release_rounds"]
    with db.connection() as connection:
        plan = explain(connection, module.SQL["release_rounds"], {"run_id": run_id, **values}, generic=generic)
    assert plan.scans(table)
    assert plan.rows_looked_at(table) < ROUNDS / 10, plan.root
