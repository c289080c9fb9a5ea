"""SuperExec as a process: Celery, its pool, its signals."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flq.link import attempts
from flq.link.database import Database
from flq.local.process import python, python_environment
from flq.wire.ids import RunId
from flq.wire.runs import Job
from flq.wire.status import Outcome, RunStatus
from tests.integration.exec_acts import FOREVER, SuperExec, descendants_of, is_gone, parent_of, project, submission
from tests.waiting import eventually


@pytest.fixture
def superexec(dsn: str, broker: str, db: Database, tmp_path: Path) -> Iterator[SuperExec]:
    found = SuperExec(dsn, broker, db, tmp_path)
    yield found
    found.stop()


def test_it_runs_what_is_published_and_says_that_it_lives(superexec: SuperExec):
    run_id, _ = superexec.run("print('done')")
    eventually(lambda: superexec.outcome(run_id), what="the end of the run")
    assert superexec.outcome(run_id) == Outcome.COMPLETED
    assert "done" in superexec.printed(run_id)
    with superexec.db.connection() as connection:
        found = connection.execute(
            "SELECT slots, pid FROM flq_state.process WHERE kind = 'superexec' AND alive_until > clock_timestamp()"
        ).fetchall()
    assert found == [(2, superexec.process.pid)]


def test_a_job_carries_the_runs_name_and_no_more(superexec: SuperExec):
    run_id, job = superexec.begun()
    inspected = superexec.celery.control.inspect(timeout=1).active()
    (active,) = [found for jobs in inspected.values() for found in jobs]
    assert active["id"] == job.job_id
    assert active["name"] == "flq.launch"
    assert active["kwargs"] == {"run": job.name, "run_id": run_id, "attempt": 1}


def test_terminating_a_job_in_celery_stops_its_run(superexec: SuperExec):
    run_id, job = superexec.begun()
    serverapp = superexec.serverapp(run_id)
    superexec.celery.control.revoke(job.job_id, terminate=True)
    eventually(lambda: superexec.outcome(run_id), what="the end of the run")
    row = superexec.control.run(str(run_id))
    assert row.outcome == Outcome.STOPPED
    actors = {event.actor for event in superexec.control.events(str(run_id)) if event.event == "stop requested"}
    assert actors == {"celery"}
    eventually(lambda: is_gone(serverapp), what="the end of the ServerApp")
    again, _ = superexec.run("pass")
    eventually(lambda: superexec.outcome(again) == Outcome.COMPLETED, what="another run on the same SuperExec")


def test_revoking_a_waiting_job_in_celery_stops_its_run(superexec: SuperExec):
    row = superexec.control.submit(submission(project(superexec.folder / "app", FOREVER)))
    (job,) = attempts.allocate(superexec.db)
    superexec.celery.control.revoke(job.job_id)
    eventually(
        lambda: any(job.job_id in ids for ids in superexec.celery.control.inspect(timeout=0.5).revoked().values()),
        what="the revocation",
    )
    superexec.publish(job)
    eventually(lambda: superexec.outcome(row.run_id), what="the end of the run")
    ended = superexec.control.run(row.name)
    assert (ended.outcome, ended.reason) == (Outcome.STOPPED, "its job was revoked through Celery")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_shutdown_hands_runs_back_within_seconds(superexec: SuperExec, signum: signal.Signals):
    run_id, _ = superexec.begun()
    serverapp = superexec.serverapp(run_id)
    begun = time.monotonic()
    superexec.process.send_signal(signum)
    assert superexec.process.wait(15) in {0, 1}, superexec.log.read_text()
    assert time.monotonic() - begun < 8
    assert is_gone(serverapp)
    row = superexec.control.run(str(run_id))
    assert row.status == RunStatus.PENDING
    with superexec.db.connection() as connection:
        alive = "SELECT count(*) FROM flq_state.process WHERE kind = 'superexec' AND alive_until > clock_timestamp()"
        assert connection.execute(alive).fetchone() == (0,)


def test_the_serverapp_dies_with_its_superexec_and_the_run_goes_on_with_the_next(superexec: SuperExec):
    body = "if context.attempt == 1:\n    print('here')\n    while True: time.sleep(0.01)"
    run_id, _ = superexec.begun(body)
    serverapp = superexec.serverapp(run_id)
    children = descendants_of(superexec.process.pid)
    superexec.process.kill()
    superexec.process.wait()
    assert serverapp in children
    eventually(lambda: all(map(is_gone, children)), timeout=10, what="the end of all of its processes")
    eventually(lambda: superexec.control.run(str(run_id)).status == RunStatus.PENDING, what="the return of the run")
    superexec.process = superexec.start()
    (job,) = attempts.allocate(superexec.db)
    assert job.attempt == 2
    superexec.publish(job)
    eventually(lambda: superexec.outcome(run_id) == Outcome.COMPLETED, what="the end of the run")


def test_nothing_is_left_of_an_idle_superexec_that_is_killed(superexec: SuperExec):
    run_id, _ = superexec.run("pass")
    eventually(lambda: superexec.outcome(run_id), what="the end of the run")
    children = descendants_of(superexec.process.pid)
    superexec.process.kill()
    superexec.process.wait()
    eventually(lambda: all(map(is_gone, children)), timeout=5, what="the end of all of its processes")


def test_slots_run_at_the_same_time_and_no_more_jobs_are_taken(superexec: SuperExec):
    first, _ = superexec.begun()
    second, _ = superexec.begun()
    assert superexec.serverapp(first) != superexec.serverapp(second)
    waiting = [Job(run_id=RunId(99), name="nobody", attempt=1, job_id=f"job-{number}") for number in range(3)]
    for job in waiting:
        superexec.publish(job)
    with superexec.celery.connection_for_read() as connection:
        eventually(lambda: connection.default_channel._size("flq.launch") == 3, what="jobs left for other SuperExecs")
    for run_id in (first, second):
        superexec.control.stop(str(run_id), actor="me")
    eventually(lambda: superexec.outcome(first) == Outcome.STOPPED, what="the end of the first run")
    eventually(lambda: superexec.outcome(second) == Outcome.STOPPED, what="the end of the second run")


def test_a_killed_pool_child_takes_its_serverapp_along_and_is_replaced(superexec: SuperExec):
    run_id, _ = superexec.begun()
    serverapp = superexec.serverapp(run_id)
    os.kill(parent_of(serverapp), signal.SIGKILL)
    eventually(lambda: is_gone(serverapp), what="the end of the ServerApp")
    superexec.control.stop(str(run_id), actor="me")
    again, _ = superexec.run("pass")
    eventually(lambda: superexec.outcome(again) == Outcome.COMPLETED, what="another run on the same SuperExec")


def freeze_children_and_kill(superexec: SuperExec) -> None:
    """Kill a SuperExec with all of its processes, none of which can say anything any more."""
    children = descendants_of(superexec.process.pid)
    for pid in children:
        os.kill(pid, signal.SIGSTOP)
    for pid in (superexec.process.pid, *children):
        os.kill(pid, signal.SIGKILL)
    superexec.process.wait()


def test_a_killed_pool_child_gives_its_run_back_before_its_lease_ends(superexec: SuperExec):
    body = "if context.attempt == 1:\n    print('here')\n    while True: time.sleep(0.01)"
    run_id, _ = superexec.begun(body)
    os.kill(parent_of(superexec.serverapp(run_id)), signal.SIGKILL)
    eventually(
        lambda: superexec.control.run(str(run_id)).status == RunStatus.PENDING, timeout=8, what="the return of the run"
    )
    (attempt,) = superexec.control.attempts(str(run_id))
    assert attempt.error == "the process that held it was killed"
    (job,) = attempts.allocate(superexec.db)
    superexec.publish(job)
    eventually(lambda: superexec.outcome(run_id) == Outcome.COMPLETED, what="the end of the run")


def test_a_restarted_superexec_gives_back_what_the_former_one_held(superexec: SuperExec):
    run_id, _ = superexec.begun("if context.attempt == 1:\n    print('here')\n    while True: time.sleep(0.01)")
    freeze_children_and_kill(superexec)
    assert superexec.control.run(str(run_id)).status == RunStatus.RUNNING
    superexec.process = superexec.start()
    assert superexec.control.run(str(run_id)).status == RunStatus.PENDING
    (attempt,) = superexec.control.attempts(str(run_id))
    assert attempt.error == "its SuperExec was restarted"
    (job,) = attempts.allocate(superexec.db)
    superexec.publish(job)
    eventually(lambda: superexec.outcome(run_id) == Outcome.COMPLETED, what="the end of the run")


def test_another_superexec_takes_over_when_the_lease_has_ended(superexec: SuperExec):
    run_id, _ = superexec.begun("if context.attempt == 1:\n    print('here')\n    while True: time.sleep(0.01)")
    freeze_children_and_kill(superexec)
    superexec.process = superexec.start("--name", "another")
    assert superexec.control.run(str(run_id)).status == RunStatus.RUNNING
    eventually(lambda: attempts.release_abandoned(superexec.db), timeout=30, what="the end of the lease")
    (job,) = attempts.allocate(superexec.db)
    superexec.publish(job)
    eventually(lambda: superexec.outcome(run_id) == Outcome.COMPLETED, what="the end of the run")


def test_a_second_superexec_of_the_same_name_is_refused(superexec: SuperExec):
    environ = {"FLQ_DSN": superexec.dsn, "FLQ_BROKER": superexec.broker, "FLQ_HOME": str(superexec.folder / "home")}
    command = python("-m", "flq", "superexec", "--slots", "1")
    second = subprocess.run(command, env=python_environment(environ), capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert "another SuperExec named 'superexec' is at work below" in second.stderr
    assert "--name" in second.stderr
    run_id, _ = superexec.run("pass")
    eventually(lambda: superexec.outcome(run_id) == Outcome.COMPLETED, what="a run of the first one")
