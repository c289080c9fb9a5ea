"""Clients that are killed and a server that falls over, in the middle of it: nothing is lost or doubled."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from flq.errors import Unreachable
from flq.link import notify, runs, verify
from flq.link.database import Database
from flq.link.grid import DbGrid
from flq.local.process import python, python_environment
from flq.local.state import Addresses
from flq.wire.grid import Pushed
from flq.wire.ids import NodeId
from flq.wire.runs import FeedCursor
from flq.wire.status import ResultStatus, Verdict
from tests.cluster import servers_of_a_copy
from tests.concurrency.queue_client import Client
from tests.integration import link_acts as act
from tests.integration.link_acts import Doors
from tests.waiting import eventually

NODES = ("a", "b", "c", "d")
BEGINNINGS = {"claim": "WITH%wanted AS%", "submit": "WITH sent AS%"}


def broken(db: Database) -> list[str]:
    return [f"{finding.invariant}: {finding.broken}" for finding in verify.run(db) if not finding.holds]


def all_finished_once(grid: DbGrid, pushed: list[Pushed]) -> None:
    """Each task has one result."""
    batches = [p.batch_id for p in pushed]
    tasks = sorted(task for p in pushed for task in p.task_ids)
    eventually(lambda: len(grid.arrived(batches, FeedCursor()).keys) == len(tasks), timeout=60, what="all results")
    keys = grid.arrived(batches, FeedCursor()).keys
    assert sorted(key.task_id for key in keys) == tasks
    assert {key.status for key in keys} == {ResultStatus.OK}


def push_to_all(grid: DbGrid, db: Database, batches: int) -> list[Pushed]:
    nodes = act.add_nodes(db, *NODES)
    return [grid.push(act.push(*nodes)) for _ in range(batches)]


@contextmanager
def client_process(dsn: str) -> Iterator[subprocess.Popen[bytes]]:
    command = python("-m", "tests.concurrency.queue_client", *NODES)
    process = subprocess.Popen(command, env=python_environment({"FLQ_DSN": dsn}))
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("table", "what"), [("batch", "claim"), ("result", "submit")])
def test_a_client_killed_in_the_middle_of_a_statement_is_followed_by_another(
    doors: Doors, dsn: str, db: Database, table: str, what: str
):
    grid, _ = doors.grid()
    pushed = push_to_all(grid, db, 5)

    def waiting() -> bool:
        with db.connection() as connection:
            return bool(
                connection.execute(
                    "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
                    " AND application_name = 'flq supernode' AND query LIKE %s",
                    [BEGINNINGS[what]],
                ).fetchone()
            )

    with client_process(dsn) as client, db.transaction() as tx:
        tx.execute(psycopg.sql.SQL("LOCK TABLE flq_state.{}").format(psycopg.sql.Identifier(table)))
        eventually(waiting, what=f"the client to be in the middle of a {what}")
        client.send_signal(signal.SIGKILL)
        client.wait()
        # its backend goes on, and nobody hears what it did
    with client_process(dsn):
        all_finished_once(grid, pushed)
    assert broken(db) == []


def test_connections_that_were_cut_are_replaced_and_the_caller_hears_of_it_once_at_most(
    doors: Doors, dsn: str, db: Database
):
    fleet, hosted = doors.fleet("a")
    grid, _ = doors.grid()
    grid.push(act.push(hosted[0].node_id))
    listener = notify.Listener(dsn, notify.TASKS)
    with psycopg.connect(dsn, autocommit=True) as connection:
        cut = connection.execute(
            "SELECT pid, pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchall()
    assert len(cut) >= 4
    # idle ones are found dead before they are used
    assert len(act.claim(fleet, hosted)) == 1
    assert len(grid.push(act.push(hosted[0].node_id)).task_ids) == 1
    with pytest.raises(Unreachable):
        listener.wait(5)
    assert listener.wait(5) == [notify.LOST]
    listener.close()

    def hear() -> None:
        while True:  # what it had been told before comes first
            fleet.wait(5)

    with pytest.raises(Unreachable):
        hear()
    wake = fleet.wait(5)
    assert (wake.tasks, wake.runs) == (True, True)
    assert len(act.claim(fleet, hosted)) == 1


class Server:
    """A Postgres of a test's own, that is started again whenever it dies."""

    def __init__(self, home: Path, addresses: Addresses) -> None:
        self._home = home
        self.dsn = addresses.dsn

    def fall_over(self) -> None:
        """An immediate end, as in a crash; returns when it takes connections again."""
        pid = int((self._home / "pg" / "postmaster.pid").read_text().splitlines()[0])
        os.kill(pid, signal.SIGQUIT)
        eventually(lambda: self._pid() not in {pid, None} and self._answers(), timeout=60, what="the server to be back")

    def _pid(self) -> int | None:
        try:
            return int((self._home / "pg" / "postmaster.pid").read_text().splitlines()[0])
        except (OSError, ValueError, IndexError):
            return None

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.dsn, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with servers_of_a_copy() as (home, addresses):
        yield Server(home, addresses)


def test_a_server_that_falls_over_again_and_again_loses_and_doubles_nothing(server: Server):
    db = Database(server.dsn, application="flq test")
    with Doors(server.dsn, db).opened as opened:
        doors = Doors(server.dsn, db)
        opened.enter_context(doors.opened)
        grid, _ = doors.grid(runs.submit(db, act.submission()))
        pushed = push_to_all(grid, db, 1)
        client = Client(server.dsn, *NODES)
        stop = threading.Event()
        worker = threading.Thread(target=client.work, args=(stop,))
        worker.start()
        try:
            for _ in range(3):
                pushed += [grid.push(act.push(*pushed_nodes(db))) for _ in range(30)]
                server.fall_over()
            all_finished_once(grid, pushed)
        finally:
            stop.set()
            worker.join(30)
        assert not worker.is_alive()
        assert client.interruptions
        told = Counter(task for task, verdict in client.verdicts if verdict is not Verdict.FENCED)
        assert set(told) == {task for p in pushed for task in p.task_ids}
        assert broken(db) == []
    db.close()


def pushed_nodes(db: Database) -> list[NodeId]:
    with db.connection() as connection:
        rows = connection.execute("SELECT node_id FROM flq_state.node ORDER BY node_id").fetchall()
    return [NodeId(node_id) for (node_id,) in rows]
