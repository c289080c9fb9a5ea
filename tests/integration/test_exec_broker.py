"""A broker that forgets, goes away, or freezes: it delays a run and never loses it."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flq.errors import BrokerUnreachable
from flq.exec.publisher import publisher
from flq.link import runs
from flq.link.control import DbControl
from flq.link.database import Database
from flq.link.superlink import SuperLink
from flq.local.process import python, python_environment
from flq.wire.ids import RunId
from flq.wire.runs import Job
from flq.wire.status import Outcome
from tests.integration import link_acts as act
from tests.integration.exec_acts import Broker, project, submission
from tests.waiting import eventually

JOB = Job(run_id=RunId(1), name="nobody", attempt=1, job_id="job")


@pytest.fixture
def superlink(dsn: str, valkey: Broker) -> Iterator[None]:
    """A SuperLink at work in a thread."""
    serving = SuperLink(dsn, publisher(valkey.address))
    ready = threading.Event()
    thread = threading.Thread(target=serving.serve, args=(ready.set,))
    thread.start()
    assert ready.wait(20)
    yield
    serving.stop()
    thread.join(20)
    assert not thread.is_alive()


@pytest.fixture
def superexec(dsn: str, valkey: Broker, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    read, write = os.pipe()
    environ = {
        "FLQ_DSN": dsn,
        "FLQ_BROKER": valkey.address,
        "FLQ_HOME": str(tmp_path / "home"),
        "FLQ_READY_FD": str(write),
    }
    with (tmp_path / "log").open("wb") as log:
        command = python("-m", "flq", "superexec", "--slots", "1")
        process = subprocess.Popen(command, env=python_environment(environ), pass_fds=(write,), stdout=log, stderr=log)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert pipe.readline() == b"ready\n"
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def control(dsn: str) -> Iterator[DbControl]:
    found = DbControl(dsn)
    yield found
    found.close()


@pytest.mark.usefixtures("superlink")
def test_jobs_that_the_broker_has_forgotten_are_published_again_soon(db: Database, valkey: Broker):
    act.superexec(db)  # one that never takes a job
    runs.submit(db, act.submission())
    eventually(valkey.jobs, what="the job")
    with db.connection() as connection:  # as if it had waited for long
        connection.execute("UPDATE flq_state.run_attempt SET publications = 50, published_at = clock_timestamp()")
        beat = (
            "UPDATE flq_state.process SET alive_until = clock_timestamp() + interval '1 hour' WHERE kind = 'superexec'"
        )
        connection.execute(beat)
    valkey.command("FLUSHALL")
    eventually(valkey.jobs, timeout=30, what="the job again")


@pytest.mark.usefixtures("superlink", "superexec")
def test_a_run_that_was_submitted_while_the_broker_was_away_goes_on_when_it_is_back(
    control: DbControl, valkey: Broker, tmp_path: Path
):
    valkey.kill()
    row = control.submit(submission(project(tmp_path / "app", "print('done')")))
    eventually(lambda: "broker" in {found.cause for found in control.waiting(row.name)}, what="the broker as a cause")
    valkey.start()
    eventually(lambda: control.run(row.name).outcome == Outcome.COMPLETED, timeout=40, what="the end of the run")
    assert control.run(row.name).attempt == 1


@pytest.mark.usefixtures("superlink")
def test_a_superexec_finds_a_broker_again_that_was_away_for_a_while(
    control: DbControl, valkey: Broker, superexec: subprocess.Popen[bytes], tmp_path: Path
):
    valkey.kill()
    log = tmp_path / "log"
    eventually(lambda: log.read_text().count("Trying again in 1.00 second") > 4, timeout=40, what="several tries")
    valkey.start()
    row = control.submit(submission(project(tmp_path / "app", "pass")))
    eventually(lambda: control.run(row.name).outcome == Outcome.COMPLETED, timeout=40, what="the end of the run")
    assert superexec.poll() is None


@pytest.mark.usefixtures("superlink", "superexec")
def test_a_run_at_work_does_not_notice_that_the_broker_was_wiped_and_replaced(
    control: DbControl, valkey: Broker, tmp_path: Path
):
    folder = project(tmp_path / "app", f"while not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)")
    row = control.submit(submission(folder))
    eventually(lambda: control.run(row.name).running_at, what="the run at work")
    valkey.command("FLUSHALL")
    valkey.kill()
    valkey.start()
    (tmp_path / "go").touch()
    eventually(lambda: control.run(row.name).outcome == Outcome.COMPLETED, what="the end of the run")
    assert control.run(row.name).attempt == 1
    again = control.submit(submission(folder))
    eventually(lambda: control.run(again.name).outcome == Outcome.COMPLETED, timeout=40, what="the end of the next run")


def test_a_frozen_broker_blocks_no_publisher(valkey: Broker):
    publish = publisher(valkey.address)
    publish(JOB)
    refused: list[BrokerUnreachable] = []

    def try_to_publish() -> None:
        try:
            publish(JOB)
        except BrokerUnreachable as exc:
            refused.append(exc)

    valkey.freeze()
    thread = threading.Thread(target=try_to_publish)
    thread.start()
    thread.join(20)
    valkey.thaw()
    assert not thread.is_alive()
    assert len(refused) == 1
    before = valkey.jobs()
    publish(JOB)
    assert valkey.jobs() > before


@pytest.mark.usefixtures("superlink", "superexec")
def test_a_broker_that_was_frozen_goes_on_where_it_was(control: DbControl, valkey: Broker, tmp_path: Path):
    folder = project(tmp_path / "app", "pass")
    valkey.freeze()
    row = control.submit(submission(folder))
    eventually(lambda: "broker" in {found.cause for found in control.waiting(row.name)}, what="the broker as a cause")
    valkey.thaw()
    eventually(lambda: control.run(row.name).outcome == Outcome.COMPLETED, timeout=40, what="the end of the run")
