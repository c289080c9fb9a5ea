"""`flq verify` on a used database: green as it is, red for each invariant that is broken by hand."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from flq.link import objects, verify
from flq.link.database import Database
from flq.local.state import Addresses
from tests.integration import link_acts as act
from tests.integration.link_acts import Doors
from tests.integration.used import Used

BREAK = {
    "one_lease_per_task": [
        "ALTER TABLE flq_state.task ALTER task_id DROP IDENTITY",
        (
            "INSERT INTO flq_state.task (node_id, run_id, task_id, batch_id)"
            " SELECT node_id + 1, run_id, task_id, batch_id FROM flq_state.task LIMIT 1"
        ),
    ],
    "leases_have_holders": ["UPDATE flq_state.task SET process_id = NULL WHERE token <> 0"],
    "open_or_finished": [
        (
            "INSERT INTO flq_state.result (batch_id, task_id, run_id, node_id, status, error_code, attempt, token)"
            " SELECT batch_id, task_id, run_id, node_id, 'error', 8, attempt, token FROM flq_state.task LIMIT 1"
        )
    ],
    "tasks_are_complete": ["DELETE FROM flq_state.task WHERE task_id = (SELECT max(task_id) FROM flq_state.task)"],
    "finished_runs_have_no_tasks": [
        (
            "INSERT INTO flq_state.task (node_id, run_id, batch_id) SELECT 2, run_id, 1 FROM flq_state.run"
            " WHERE status = 'finished' LIMIT 1"
        )
    ],
    "attempts_rise": ["UPDATE flq_state.task_attempt SET attempt = attempt + 1 WHERE reason = 'ok'"],
    "results_have_attempts": ["DELETE FROM flq_state.task_attempt WHERE reason = 'ok'"],
    "states_have_replies": ["INSERT INTO flq_state.client_state VALUES (4711, 2, 4711, 4711)"],
    "no_orphans": ["UPDATE flq_state.log_line SET run_id = 4711"],
    "steps_are_whole": ["DELETE FROM flq_state.step WHERE kind = 'push'"],
    "commits_follow": ["UPDATE flq_state.checkpoint SET next_sequence = 4711 WHERE round = 0"],
    "deliveries_exist": [
        "UPDATE flq_state.step SET delivered = '[{\"received\": [[4711, 2]]}]' WHERE kind = 'checkpoint'"
    ],
    "delivered_once": [
        (
            "UPDATE flq_state.step"
            " SET delivered = delivered || jsonb_build_object('pulled', delivered #> '{0,received}')"
            " WHERE delivered @? '$[0].received'"
        )
    ],
    "time_outs_stay": [
        (
            "UPDATE flq_state.step SET delivered = jsonb_build_array((delivered -> 0)"
            " || jsonb_build_object('timed_out', delivered #> '{0,received}')) WHERE delivered @? '$[0].received'"
        )
    ],
    "references_have_holders": ["UPDATE flq_state.object_ref SET holder_id = 4711 WHERE holder = 'artifact'"],
    "objects_are_complete": ["UPDATE flq_state.object_chunk SET data = substr(data, 1, 100) WHERE sequence = 0"],
    "nothing_is_left_over": ["DELETE FROM flq_state.object_pin", "DELETE FROM flq_state.object_ref"],
    "bundles_are_whole": ["UPDATE flq_state.bundle SET data = 'other'"],
    "drawn_transitions": ["DELETE FROM flq_state.run_event WHERE event = 'starting'"],
    "one_active_attempt": [
        (
            "INSERT INTO flq_state.run_attempt (run_id, attempt, token, job_id)"
            " SELECT run_id, attempt + 1, 4711, '' FROM flq_state.run WHERE status = 'running' LIMIT 1"
        )
    ],
    "tokens_match": ["UPDATE flq_state.run SET attempt_token = 4711 WHERE status = 'running'"],
    "partitions": ["DROP TABLE flq_state.result_p000001"],
}


def broken(db: Database, **options: bool) -> dict[str, tuple[str, ...]]:
    return {found.invariant: found.broken for found in verify.run(db, **options) if not found.holds}


@pytest.fixture(scope="module")
def used(servers: Addresses, admin: Callable[[str], None], template: str) -> Iterator[Database]:
    """A used database that the tests of this module leave as it is."""
    admin(f"CREATE DATABASE flq_used TEMPLATE {template}")
    dsn = servers.dsn.replace("dbname=flq", "dbname=flq_used")
    database = Database(dsn, application="flq test")
    doors = Doors(dsn, database)
    with doors.opened:
        assert broken(database, payloads=True) == {}
        Used(doors, database).everything()
    yield database
    database.close()
    admin("DROP DATABASE flq_used WITH (FORCE)")


def broken_by(db: Database, *statements: str) -> set[str]:
    with db.connection() as connection, connection.transaction(force_rollback=True):
        for statement in statements:
            assert connection.execute(statement.encode()).rowcount
        return {found.invariant for found in verify.look(connection) if not found.holds}


def test_a_used_database_is_in_order(used: Database):
    assert broken(used, payloads=True) == {}


@pytest.mark.parametrize("invariant", verify.INVARIANTS)
def test_what_breaks_an_invariant_is_found(used: Database, invariant: str):
    assert invariant in broken_by(used, *BREAK[invariant])


@pytest.mark.parametrize(
    ("invariant", "statement"),
    [
        ("no_orphans", "UPDATE flq_state.task SET batch_id = 4711"),
        ("no_orphans", "UPDATE flq_state.task SET node_id = 4711"),
        ("no_orphans", "UPDATE flq_state.result SET node_id = 4711"),
        ("no_orphans", "UPDATE flq_state.result SET run_id = 4711"),
        ("no_orphans", "UPDATE flq_state.task_message SET task_id = task_id + 4711"),
        ("no_orphans", "UPDATE flq_state.task_attempt SET task_id = task_id + 4711"),
        ("results_have_attempts", "UPDATE flq_state.task_attempt SET node_id = 4711"),
        (
            "states_have_replies",
            (
                "INSERT INTO flq_state.client_state SELECT run_id, node_id, task_id, batch_id FROM flq_state.result"
                " WHERE status <> 'ok'"
            ),
        ),
        ("leases_have_holders", "UPDATE flq_state.task SET epoch = 4711 WHERE token <> 0"),
        ("attempts_rise", "UPDATE flq_state.task SET attempt = 1 WHERE attempt > 1"),
        ("objects_are_complete", "DELETE FROM flq_state.object_chunk WHERE sequence = 0"),
        ("references_have_holders", "DELETE FROM flq_state.object_ref WHERE holder = 'artifact'"),
        ("nothing_is_left_over", "INSERT INTO flq_state.object_chunk VALUES (sha256('x'), 0, 'x')"),
        ("drawn_transitions", "UPDATE flq_state.run_event SET event = 'stopped' WHERE event = 'completed'"),
        ("one_active_attempt", "UPDATE flq_state.run_attempt SET status = 'ended', ended_at = now()"),
        ("tokens_match", "UPDATE flq_state.run_attempt SET token = 4711"),
        ("steps_are_whole", "DELETE FROM flq_state.step WHERE kind = 'checkpoint'"),
        ("steps_are_whole", "DELETE FROM flq_state.batch"),
        ("deliveries_exist", "UPDATE flq_state.batch SET sequence = sequence + 100"),
        ("deliveries_exist", "DELETE FROM flq_state.node_list"),
        ("partitions", "CREATE TABLE flq_state.log_line_p19990101 ()"),
        ("partitions", "ALTER TABLE flq_state.result_p000001 RENAME TO result_p000009"),
    ],
)
def test_it_is_found_in_other_forms_too(used: Database, invariant: str, statement: str):
    assert invariant in broken_by(used, statement)


def test_a_reference_to_an_object_that_is_gone_is_found(used: Database):
    assert "objects_are_complete" in broken_by(
        used,
        "ALTER TABLE flq_state.object_ref DROP CONSTRAINT fk_object_ref_object_hash",
        "ALTER TABLE flq_state.artifact DROP CONSTRAINT fk_artifact_object_hash",
        "DELETE FROM flq_state.object",
    )


def test_payloads_are_read_when_asked(db: Database):
    data = os.urandom(100)
    objects.put(db, act.object_of(data), memoryview(data))
    with db.connection() as connection:
        connection.execute("UPDATE flq_state.object_chunk SET data = set_byte(data, 7, 255 - get_byte(data, 7))")
    assert broken(db) == {}
    assert list(broken(db, payloads=True)) == [verify.PAYLOADS]
