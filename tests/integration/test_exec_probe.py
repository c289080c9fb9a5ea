"""A SuperExec that takes no jobs any more finds out, and takes some again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from flq.exec.celery_app import QUEUE, housekeeping_queue
from flq.exec.probe import PATIENCE
from flq.link import attempts, processes
from flq.link.control import DbControl
from flq.link.database import Database
from flq.link.processes import Consumption
from flq.wire.runs import SuperExecRow
from flq.wire.status import Outcome, RunStatus
from tests.integration import link_acts as act
from tests.integration.exec_acts import Broker, SuperExec
from tests.waiting import eventually

QUICK = ("--probe-interval", "0.2")
DONE = "print('done')"

HANGING = """
import sys, time
from celery.worker.control import control_command
from flq.cli.main import main

@control_command()
def hang(state):
    while True:
        time.sleep(60)

sys.exit(main())
"""
"""A program like `flq`, of which the main thread of a SuperExec can be made to hang."""

Start = Callable[..., SuperExec]


@pytest.fixture
def start(dsn: str, broker: str, db: Database, tmp_path: Path) -> Iterator[Start]:
    started: list[SuperExec] = []

    def begin(*options: str, on: str = broker, **how: Any) -> SuperExec:
        started.append(SuperExec(dsn, on, db, tmp_path, *options, **how))
        return started[-1]

    yield begin
    for superexec in started:
        superexec.stop()


def seen(superexec: SuperExec) -> SuperExecRow:
    """What people see of it."""
    return next(found for found in superexec.control.superexecs() if found.pid == superexec.process.pid)


def await_housekeeping(superexec: SuperExec) -> None:
    """Wait until another housekeeping job is taken."""
    before = seen(superexec).consumed_at
    eventually(lambda: seen(superexec).consumed_at != before, what="another housekeeping job")


def await_heartbeats(superexec: SuperExec, seconds: float) -> None:
    """Wait until heartbeats of so many seconds have come in."""

    def alive_until() -> datetime:
        ((found,),) = superexec.control.query("SELECT alive_until FROM superexecs WHERE online").rows
        assert isinstance(found, datetime)
        return found

    before = alive_until()
    eventually(lambda: (alive_until() - before).total_seconds() >= seconds, timeout=30, what="heartbeats")


def worker_of(superexec: SuperExec) -> str:
    """The name of a SuperExec's Celery worker."""
    (name,) = superexec.celery.control.inspect(timeout=5, limit=1).ping()
    return str(name)


def test_it_shows_when_the_last_job_was_taken(start: Start):
    superexec = start(*QUICK)
    await_housekeeping(superexec)
    await_housekeeping(superexec)
    found = seen(superexec)
    assert (found.consuming, found.jobs_missed, found.consumer_restarts) == (True, 0, 0)
    assert (found.slots, found.slots_taken, found.pid) == (2, 0, superexec.process.pid)


@pytest.mark.parametrize("what", ["launches", "housekeeping"])
def test_a_queue_that_is_read_no_more_is_read_again_and_serverapps_do_not_notice(start: Start, what: str):
    superexec = start(*QUICK)
    at_work, _ = superexec.begun()
    serverapp = superexec.serverapp(at_work)
    await_housekeeping(superexec)
    queue = QUEUE if what == "launches" else housekeeping_queue(worker_of(superexec))
    superexec.celery.control.cancel_consumer(queue, reply=True)
    eventually(lambda: seen(superexec).consumer_restarts == 1, what="the probe's verdict")
    await_housekeeping(superexec)
    assert seen(superexec).consuming
    run_id, _ = superexec.run(DONE)
    eventually(lambda: superexec.outcome(run_id) == Outcome.COMPLETED, what="the end of a run")
    assert superexec.serverapp(at_work) == serverapp
    assert superexec.control.run(str(at_work)).status == RunStatus.RUNNING
    assert seen(superexec).consumer_restarts == 1
    assert superexec.process.poll() is None


def test_one_whose_slots_are_all_taken_is_not_mistaken(start: Start):
    superexec = start(*QUICK)
    await_housekeeping(superexec)
    first, job = superexec.begun()
    superexec.begun()
    await_heartbeats(superexec, 4 * PATIENCE * 0.2)
    found = seen(superexec)
    assert (found.consuming, found.jobs_missed, found.consumer_restarts) == (True, 0, 0)
    assert found.slots_taken == 2
    superexec.celery.control.terminate(job.job_id)
    eventually(lambda: superexec.outcome(first) == Outcome.STOPPED, what="the end of a run")
    await_housekeeping(superexec)
    assert seen(superexec).consumer_restarts == 0


def test_a_broker_that_is_away_or_wiped_is_not_mistaken(start: Start, valkey: Broker):
    superexec = start("--probe-interval", "1", on=valkey.address)
    await_housekeeping(superexec)
    valkey.command("FLUSHALL")
    await_housekeeping(superexec)
    valkey.kill()
    await_heartbeats(superexec, 2 * PATIENCE)
    found = seen(superexec)
    assert (found.consuming, found.consumer_restarts) == (True, 0)
    valkey.start()
    await_housekeeping(superexec)
    run_id, _ = superexec.run(DONE)
    eventually(lambda: superexec.outcome(run_id) == Outcome.COMPLETED, what="the end of a run")


def test_one_that_hangs_ends_and_its_runs_go_on_with_the_next(start: Start, tmp_path: Path):
    (tmp_path / "hanging.py").write_text(HANGING)
    superexec = start(*QUICK, program=(str(tmp_path / "hanging.py"),))
    go = str(tmp_path / "go")
    run_id, _ = superexec.begun(f"print('here', flush=True)\nwhile not os.path.exists({go!r}): time.sleep(0.01)")
    serverapp = superexec.serverapp(run_id)
    superexec.celery.control.broadcast("hang")
    eventually(lambda: superexec.process.poll() is not None, timeout=40, what="the end of the SuperExec")
    assert superexec.process.returncode == 1
    assert "consuming anew has not helped" in superexec.log.read_text()
    assert superexec.control.run(str(run_id)).status == RunStatus.PENDING
    (tmp_path / "go").touch()
    superexec.process = superexec.start(*QUICK)
    (job,) = attempts.allocate(superexec.db)
    superexec.publish(job)
    eventually(lambda: superexec.outcome(run_id) == Outcome.COMPLETED, what="the end of the run")
    assert superexec.serverapp(run_id) != serverapp


def test_people_see_which_superexecs_take_no_jobs(dsn: str, db: Database):
    spec = act.superexec(db)
    control = DbControl(dsn)
    row = control.submit(act.submission())
    (job,) = attempts.allocate(db)
    attempts.republished(db, [job])
    for missed, consuming in ((PATIENCE - 1, True), (PATIENCE, False)):
        processes.note_consumption(db, spec.process_id, Consumption(taken=False, missed=missed, restarts=1))
        (seen,) = control.superexecs()
        assert (seen.online, seen.consuming, seen.jobs_missed, seen.consumer_restarts) == (True, consuming, missed, 1)
        (reason,) = [found.reason for found in control.waiting(row.name) if found.cause == "job"]
        assert reason.endswith("; 1 of 1 SuperExecs take no jobs from the broker") is not consuming
    processes.retire(db, spec.process_id)
    (seen,) = control.superexecs()
    assert (seen.online, seen.consuming, seen.slots, seen.slots_taken) == (False, None, spec.slots, 0)
    control.close()
