"""`flq prune`: what finished runs leave behind goes, and nothing else."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from flq.errors import IllegalTransition, LinkError
from flq.link import collection, lineage, logs, maintenance, retention, runs, verify
from flq.link.database import Database, Tx
from flq.link.retention import Freed, Scope
from flq.wire.ids import RunId
from flq.wire.runs import Derivation, FeedCursor
from flq.wire.status import Outcome
from tests.integration import link_acts as act
from tests.integration.link_acts import Doors
from tests.integration.test_link_collection import pass_pins
from tests.integration.used import PAYLOAD, Used, line, store


def count(db: Database, table: str, run_id: RunId | None = None) -> int:
    where = f"WHERE run_id = {run_id}" if run_id else ""
    with db.connection() as connection:
        row = connection.execute(f"SELECT count(*) FROM flq_state.{table} {where}".encode()).fetchone()
    return row[0] if row else 0


def counts(db: Database, run_id: RunId) -> dict[str, int]:
    tables = (
        "result", "task_attempt", "client_state", "log_line", "object_ref", "checkpoint", "round_metric", "run_event",
        "artifact",
    )  # fmt: skip
    return {table: count(db, table, run_id) for table in tables}


def grow_old(db: Database, run_id: RunId, days: int = 40) -> None:
    with db.connection() as connection:
        connection.execute(
            "UPDATE flq_state.run SET finished_at = finished_at - make_interval(days => %s::int) WHERE run_id = %s",
            [days, run_id],
        )


def in_order(db: Database) -> bool:
    return [found for found in verify.run(db) if not found.holds] == []


@pytest.fixture
def used(doors: Doors, db: Database) -> Used:
    return Used(doors, db)


DAY = 86400.0


def test_a_run_is_pruned_and_its_history_stays(used: Used, db: Database):
    old, other = used.completed(), used.completed()
    with db.transaction() as tx:
        collection.sweep_runs(tx)
    before = counts(db, other)
    pass_pins(db)
    said = retention.survey(db, Scope(runs=(old,)))
    assert counts(db, old) == before
    freed = retention.prune(db, Scope(runs=(old,)))
    assert freed == said
    assert (freed.runs, freed.results, freed.checkpoints, freed.log_lines) == (1, 4, 2, 2)
    assert (freed.objects, freed.bytes) == (2, 2 * PAYLOAD)
    after = counts(db, old)
    assert after == {
        **before,
        "result": 0,
        "task_attempt": 0,
        "log_line": 0,
        "object_ref": 1,  # of the artifact
    }
    assert counts(db, other) == before
    assert count(db, "object") == 4  # an artifact of each, two checkpoints of the other
    assert in_order(db)
    assert retention.prune(db, Scope(runs=(old,))).results == 0


def test_payloads_alone(used: Used, doors: Doors, db: Database):
    grid, claim = doors.grid()
    used.round(grid, claim, 0)
    grid.push(act.push(*used.nodes, sequence=1, manifests=(b"one", b"two"), objects=frozenset({store(grid)})))
    used.submit([act.reply(lease, manifest=b"x" * 1000) for lease in act.claim(used.fleet, used.hosted)])
    used.end(claim, Outcome.FAILED)
    before = counts(db, claim.run.run_id)
    pass_pins(db)
    freed = retention.prune(db, Scope(runs=(claim.run.run_id,), payloads=True))
    assert (freed.objects, freed.checkpoints, freed.results, freed.log_lines) == (2, 1, 0, 0)
    assert counts(db, claim.run.run_id) == {**before, "object_ref": 0}
    assert count(db, "object") == count(db, "object_chunk") == count(db, "task_message") == 0
    with db.connection() as connection:
        row = connection.execute("SELECT sum(octet_length(manifest)) FROM flq_state.result").fetchone()
    assert row == (0,)
    with pytest.raises(LinkError, match="pruned"):
        grid.last_checkpoint()
    assert in_order(db)


def test_with_its_history_nothing_is_left_of_a_run(used: Used, db: Database):
    old, other = used.completed(), used.completed()
    with db.connection() as connection:
        connection.execute(
            "UPDATE flq_state.run SET forked_from = %s, forked_from_round = 1 WHERE run_id = %s", [old, other]
        )
    before = counts(db, other)
    freed = retention.prune(db, Scope(runs=(old,), history=True))
    assert (freed.metrics, freed.artifacts) == (2, 1)
    assert freed.events > 3
    assert set(counts(db, old).values()) == {0}
    assert [row.run_id for row in runs.listing(db)] == [other]
    assert counts(db, other) == before
    assert count(db, "bundle") == 1
    retention.prune(db, Scope(runs=(other,), history=True))
    assert count(db, "bundle") == 0
    assert in_order(db)


def test_a_run_keeps_its_history_while_a_fork_of_it_is_at_work(used: Used, doors: Doors, db: Database):
    old = used.completed()
    grow_old(db, old)
    derivation = Derivation(owner="ada", idempotency_key="fork", from_round=1)
    fork = lineage.derive(db, old, derivation)
    assert retention.survey(db, Scope(age=30 * DAY, history=True)).runs == 0
    name = runs.listing(db, run_id=fork)[0].name
    with pytest.raises(IllegalTransition, match=f"not finished: {name}"):
        retention.prune(db, Scope(runs=(old,), history=True))
    assert retention.prune(db, Scope(runs=(old,))).runs == 1
    assert count(db, "client_state", old) == 4
    _, claim = doors.grid(fork)
    used.end(claim, Outcome.COMPLETED)
    assert retention.prune(db, Scope(age=30 * DAY, history=True)).runs == 1
    assert count(db, "client_state", old) == 0
    assert in_order(db)


def test_by_age_only_what_is_old_enough_goes(used: Used, db: Database):
    old, young = used.completed(), used.completed()
    grow_old(db, old)
    assert retention.survey(db, Scope(age=50 * DAY)).runs == 0
    assert retention.prune(db, Scope(age=30 * DAY)).runs == 1
    assert count(db, "result", old) == 0
    assert count(db, "result", young) == 4
    assert retention.survey(db, Scope(age=30 * DAY)).runs == 0
    assert retention.survey(db, Scope(age=30 * DAY, history=True)).runs == 1
    assert in_order(db)


def test_partitions_go_as_a_whole(used: Used, db: Database):
    old, young = used.completed(), used.completed()
    with db.connection() as connection:
        # output of forty days ago, and results in a block that is full
        connection.execute(
            "CREATE TABLE flq_state.log_line_p20200101 PARTITION OF flq_state.log_line"
            " FOR VALUES FROM ('2020-01-01 00:00:00+00') TO ('2020-01-02 00:00:00+00')"
        )
        connection.execute("UPDATE flq_state.log_line SET at = '2020-01-01 12:00:00+00' WHERE run_id = %s", [old])
        connection.execute("ALTER TABLE flq_state.batch ALTER batch_id RESTART WITH 1000005")
        connection.execute("SELECT flq_state.make_partitions()")
    recent = used.completed()
    maintenance.make_partitions(db)
    grow_old(db, old)
    assert retention.survey(db, Scope(age=30 * DAY)).partitions == ("log_line_p20200101",)
    grow_old(db, young)
    freed = retention.survey(db, Scope(age=30 * DAY))
    assert freed.partitions == ("log_line_p20200101", "result_p000000")
    assert freed.partition_bytes > 0
    assert retention.prune(db, Scope(age=30 * DAY)) == freed
    with db.connection() as connection:
        assert connection.execute("SELECT to_regclass('flq_state.result_p000000')").fetchone() == (None,)
        assert connection.execute("SELECT to_regclass('flq_state.log_line_p20200101')").fetchone() == (None,)
    assert [count(db, table) for table in ("result", "task_attempt")] == [4, 4]
    assert count(db, "result", recent) == 4
    assert in_order(db)


def test_what_a_broken_off_call_has_left_is_finished(used: Used, db: Database):
    with db.connection() as connection:
        connection.execute("CREATE TABLE flq_state.result_p000777 (LIKE flq_state.result)")  # detached, not dropped
    assert not in_order(db)
    retention.prune(db, Scope(age=30 * DAY))
    assert in_order(db)


def test_a_run_that_is_not_finished_is_refused(used: Used, doors: Doors, db: Database):
    _, claim = doors.grid()
    for act_ in (retention.survey, retention.prune):
        with pytest.raises(IllegalTransition, match=claim.run.name):
            act_(db, Scope(runs=(claim.run.run_id,)))
    assert retention.prune(db, Scope(age=0.0)).runs == 0


def test_logs_of_a_run_that_is_pruned_can_still_be_asked_for(used: Used, db: Database):
    old = used.completed()
    logs.append(db, [(old, line("late"))])
    retention.prune(db, Scope(runs=(old,)))
    assert logs.read(db, old, FeedCursor()).lines == ()


def test_in_transactions_of_bounded_size(used: Used, db: Database, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(retention, "CHUNK_TASKS", 2)
    monkeypatch.setattr(retention, "CHUNK_LINES", 1)
    old = used.completed(rounds=3)
    assert retention.prune(db, Scope(runs=(old,))).results == 6
    assert [count(db, table, old) for table in ("result", "task_attempt", "log_line")] == [0, 0, 0]
    assert in_order(db)


def test_a_partition_that_was_half_detached_is_finished(used: Used, db: Database, dsn: str):
    """A call was broken off while it waited for those who still read the partition."""
    with db.connection() as connection:
        connection.execute(
            "CREATE TABLE flq_state.log_line_p20200101 PARTITION OF flq_state.log_line"
            " FOR VALUES FROM ('2020-01-01 00:00:00+00') TO ('2020-01-02 00:00:00+00')"
        )
    with psycopg.connect(dsn) as reader, psycopg.connect(dsn, autocommit=True) as detaching:
        reader.execute("SELECT count(*) FROM flq_state.log_line")
        detaching.execute("SET statement_timeout = '200ms'")
        with pytest.raises(psycopg.errors.QueryCanceled):
            detaching.execute(
                "ALTER TABLE flq_state.log_line DETACH PARTITION flq_state.log_line_p20200101 CONCURRENTLY"
            )
    assert [found.invariant for found in verify.run(db) if not found.holds] == ["partitions"]
    assert retention.prune(db, Scope(age=30 * DAY)).partitions == ("log_line_p20200101",)
    assert in_order(db)


def test_a_run_that_goes_on_meanwhile_is_left_alone(used: Used, db: Database, monkeypatch: pytest.MonkeyPatch):
    old = used.completed()
    survey = retention._survey

    def resume(tx: Tx, *arguments: Any) -> Freed:
        freed = survey(tx, *arguments)
        tx.execute("UPDATE flq_state.run SET status = 'pending', outcome = NULL, finished_at = NULL")
        return freed

    monkeypatch.setattr(retention, "_survey", resume)
    retention.prune(db, Scope(runs=(old,)))
    assert count(db, "result", old) == 4
