"""Migrations: head is the models, up and down, several upgraders at once."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator

import pytest
from alembic.script import ScriptDirectory

from flq.link import schema
from flq.link.database import Database
from flq.local.process import python, python_environment
from flq.local.state import Addresses
from flq.models import VIEWS


@pytest.fixture
def empty(servers: Addresses, admin: Callable[[str], None]) -> Iterator[str]:
    admin("CREATE DATABASE flq_empty")
    yield servers.dsn.replace("dbname=flq", "dbname=flq_empty")
    admin("DROP DATABASE flq_empty WITH (FORCE)")


def test_the_newest_migration_is_what_this_flq_works_with():
    assert ScriptDirectory.from_config(schema.config()).get_heads() == [schema.HEAD]


def test_models_and_database_do_not_differ(dsn: str):
    assert schema.drift(dsn) == []


def test_views_are_those_of_the_models(dsn: str, db: Database):
    """Each model view, created anew, has the definition that the migrations have left."""
    with db.transaction() as tx:
        for name, select in VIEWS.items():
            tx.execute(f"CREATE TEMPORARY VIEW ours AS {select}")
            row = tx.execute("SELECT pg_get_viewdef('ours'::regclass), pg_get_viewdef(%s::regclass)", [f"flq.{name}"])
            ours, theirs = row.fetchone() or ("", None)
            assert ours == theirs, name
            tx.execute("DROP VIEW ours")
        rows = tx.execute("SELECT viewname FROM pg_views WHERE schemaname = 'flq'").fetchall()
    assert {name for (name,) in rows} == VIEWS.keys()


def test_up_down_and_up_again(empty: str):
    assert schema.current(empty) is None
    schema.upgrade(empty)
    assert schema.current(empty) == schema.HEAD
    schema.downgrade(empty, "base")
    assert schema.current(empty) is None
    schema.upgrade(empty)
    schema.check(empty)


def test_three_upgraders_at_once(empty: str):
    failures: list[BaseException] = []

    def upgrade() -> None:
        command = python("-m", "flq.link.schema", "upgrade")
        done = subprocess.run(
            command, env=python_environment({"FLQ_DSN": empty}), check=False, capture_output=True, timeout=60
        )
        if done.returncode:
            failures.append(AssertionError(done.stderr.decode()))

    threads = [threading.Thread(target=upgrade) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert schema.drift(empty) == []


def test_partitions_are_made_ahead_and_once(db: Database):
    from flq.link import maintenance

    assert maintenance.make_partitions(db) == []
    with db.transaction() as tx:
        tx.execute("DROP TABLE flq_state.result_p000001")
    assert maintenance.make_partitions(db) == ["result_p000001"]


def test_what_each_round_writes_to_is_analyzed_when_it_has_doubled(db: Database):
    """Each analysis has every session plan its statements anew, in memory that it does not give back at once."""
    with db.connection() as connection:
        rows = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'flq_state'::regnamespace"
            " AND reloptions @> '{autovacuum_analyze_scale_factor=1}'"
        ).fetchall()
    seldom = {name for (name,) in rows}
    assert {"task", "batch", "step", "checkpoint", "result_p000000", "result_p000001"} <= seldom
    assert any(name.startswith("log_line_p") for name in seldom)
