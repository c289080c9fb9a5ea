"""The SuperLink's process: it dispatches when told, sweeps by the clock, and outlives a lost database."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from flq.link import attempts, runs
from flq.link.control import DbControl
from flq.link.database import Database
from flq.link.superlink import SuperLink
from flq.wire.runs import FeedCursor, Job
from flq.wire.status import ProcessKind, ResultStatus, RunStatus
from tests.integration import link_acts as act
from tests.integration.link_acts import Doors
from tests.waiting import eventually


class Serving:
    """A SuperLink at work in a thread, and what it has published."""

    def __init__(self, dsn: str) -> None:
        self.jobs: list[Job] = []
        self.ready = threading.Event()
        self._superlink = SuperLink(dsn, self.jobs.append)
        self._thread = threading.Thread(target=self._superlink.serve, args=(self.ready.set,))
        self._thread.start()
        assert self.ready.wait(20)

    def stop(self) -> None:
        self._superlink.stop()
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture
def superlink(dsn: str) -> Iterator[Serving]:
    found = Serving(dsn)
    yield found
    found.stop()


def test_a_submitted_run_is_dispatched(superlink: Serving, db: Database):
    act.superexec(db)
    run_id = runs.submit(db, act.submission("my-run"))
    eventually(lambda: superlink.jobs, what="the job")
    assert [(job.run_id, job.name, job.attempt) for job in superlink.jobs] == [(run_id, "my-run", 1)]


def test_it_ends_overdue_tasks_and_releases_abandoned_attempts(superlink: Serving, doors: Doors, db: Database):
    _, hosted = doors.fleet("a")
    grid, claim = doors.grid()
    late = grid.push(act.push(hosted[0].node_id, ttl=0.01))

    def ended() -> list[ResultStatus]:
        return [key.status for key in grid.arrived([late.batch_id], FeedCursor()).keys]

    eventually(ended, what="the end of the task")
    assert ended() == [ResultStatus.EXPIRED]
    with db.connection() as connection:
        connection.execute("UPDATE flq_state.run_attempt SET lease_until = clock_timestamp() - interval '1 s'")
    eventually(lambda: any(job.attempt == 2 for job in superlink.jobs), what="the next attempt")
    assert not attempts.renew(db, run_id=claim.run.run_id, token=claim.token).ours


def test_it_outlives_the_loss_of_its_connections(superlink: Serving, db: Database):
    act.superexec(db)
    with db.connection() as connection:
        lost = connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name LIKE 'flq superlink%'"
        ).fetchall()
    assert lost
    runs.submit(db, act.submission())
    eventually(lambda: superlink.jobs, what="the job")


def test_it_says_goodbye(dsn: str, db: Database):
    serving = Serving(dsn)
    control = DbControl(dsn)
    alive = f"select count(*) from flq_state.process where kind = '{ProcessKind.SUPERLINK}' and alive_until > now()"
    with db.connection() as connection:
        assert connection.execute(alive).fetchone() == (1,)
        serving.stop()
        assert connection.execute(alive).fetchone() == (0,)
    act.superexec(db)
    run = control.submit(act.submission())
    assert control.waiting(run.name)[0].reason.startswith("no SuperLink is alive to dispatch it; the last one went ")
    assert control.run(run.name).status == RunStatus.PENDING
    control.close()
