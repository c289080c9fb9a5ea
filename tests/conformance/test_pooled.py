"""What must not be relied on behind a pooler in transaction mode, and what holds there all the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus

from flq.errors import LinkError
from flq.link import database, notify, verify
from flq.link.database import Database

LIMITS = {"statement_timeout": "1min", "lock_timeout": "10s", "idle_in_transaction_session_timeout": "1min"}


@pytest.fixture
def behind(pooled: str, dsn: str) -> Iterator[Database]:
    dsn = make_conninfo(pooled, dbname=conninfo_to_dict(dsn)["dbname"])
    database = Database(dsn, application="flq pooled test")
    yield database
    database.close()


def limits(tx: database.Tx) -> dict[str, str]:
    found = {}
    for name in LIMITS:
        row = tx.execute("SELECT current_setting(%s)", [name]).fetchone()
        assert row is not None
        found[name] = row[0]
    return found


def test_a_pooler_is_found_out_and_a_server_too(behind: Database, db: Database):
    with behind.connection() as pooled, db.connection() as direct:
        assert (database.is_pooled(pooled), database.is_pooled(direct)) == (True, False)


def test_every_statement_and_every_transaction_has_its_limits(behind: Database, db: Database):
    with behind.connection() as connection:
        assert limits(connection) == LIMITS
        with connection.transaction():
            assert limits(connection) == LIMITS
            with connection.transaction():
                assert limits(connection) == LIMITS
    with db.connection() as connection:
        assert limits(connection) == LIMITS


def test_who_works_by_key_does_so_behind_a_pooler_too(behind: Database, db: Database):
    """A submit locks its tasks in the order in which it reads them."""
    for dsn in (behind.dsn, db.dsn):
        with closing(Database(dsn, application="flq pooled test", by_key=True)) as hot, hot.connection() as connection:
            row = connection.execute(
                "SELECT current_setting('enable_seqscan'), current_setting('enable_bitmapscan')"
            ).fetchone()
            assert row == ("off", "off")
            with connection.transaction():
                assert connection.execute("SHOW enable_seqscan").fetchone() == ("off",)


def test_a_statement_that_takes_too_long_is_cut(behind: Database, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(database, "_LIMIT", sql.SQL("SET LOCAL statement_timeout = '50ms'"))
    with pytest.raises(LinkError, match="timeout"), behind.connection() as connection:
        connection.execute("SELECT pg_sleep(30)")


def test_nothing_is_prepared_and_no_setting_stays(behind: Database):
    with behind.connection() as connection:
        for _ in range(10):
            connection.execute("SELECT %s::int", [1], prepare=True)
        rows = connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchall()
        assert rows == [(0,)]
        raw = connection.pgconn.exec_(b"SHOW statement_timeout")
        assert raw.get_value(0, 0) == b"0"


def test_a_copy_has_its_limits_and_leaves_no_transaction(behind: Database):
    with behind.connection() as connection:
        with (
            connection.cursor() as cursor,
            cursor.copy("COPY (SELECT current_setting('lock_timeout')) TO STDOUT") as copy,
        ):
            assert list(copy.rows()) == [("10s",)]
        assert connection.info.transaction_status == TransactionStatus.IDLE


def test_who_cannot_listen_polls_and_can_be_interrupted(behind: Database):
    listener = notify.Listener(behind.dsn, notify.TASKS)
    listener.interrupt()
    assert listener.wait(60) == [notify.LOST]
    assert listener.wait(0) == [notify.LOST]
    listener.close()


def test_the_invariants_can_be_looked_at(behind: Database):
    assert [finding for finding in verify.run(behind) if not finding.holds] == []
