"""The launcher, with real ServerApp processes and a real database."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flq.link import attempts
from flq.link.database import Database
from flq.wire.status import AttemptStatus, Outcome, RunStatus
from tests.integration.exec_acts import FOREVER, Bench, is_gone
from tests.waiting import eventually


@pytest.fixture
def bench(dsn: str, db: Database, tmp_path: Path) -> Iterator[Bench]:
    found = Bench(dsn, db, tmp_path)
    yield found
    found.close()


def test_a_completed_run(bench: Bench):
    run_id = bench.submit("print('one')\nprint('two', end='')")
    assert bench.launch() == "completed"
    row = bench.row(run_id)
    assert (row.status, row.outcome, row.reason) == (RunStatus.FINISHED, Outcome.COMPLETED, None)
    assert row.running_at is not None
    assert [text for _, text in bench.log(run_id)] == ["one", "two"]
    (attempt,) = bench.control.attempts(str(run_id))
    assert (attempt.status, attempt.exit_code, attempt.error) == (AttemptStatus.ENDED, 0, None)
    assert is_gone(bench.pid(run_id))


def test_superexec_tells_of_the_attempt_in_the_log(bench: Bench):
    run_id = bench.submit("pass")
    bench.launch()
    told = [text for _, text in bench.log(run_id, "superexec")]
    assert told[0].startswith("attempt 1: ServerApp started on ")
    assert told[1:] == ["attempt 1: ServerApp completed"]


def test_an_exception_fails_the_run_with_the_traceback_of_the_app(bench: Bench):
    run_id = bench.submit("raise ValueError('boom\\nand more')")
    assert bench.launch() == "failed"
    row = bench.row(run_id)
    assert (row.outcome, row.reason) == (Outcome.FAILED, "ServerApp raised ValueError: boom")
    (attempt,) = bench.control.attempts(str(run_id))
    assert attempt.exit_code == 1
    assert attempt.error is not None
    assert "tester/server.py" in attempt.error
    assert "flq/exec" not in attempt.error
    assert ("ERROR", "ValueError: boom") in bench.log(run_id)


@pytest.mark.parametrize(
    ("code", "outcome", "reason"),
    [
        ("sys.exit(3)", Outcome.FAILED, "ServerApp exited with 3"),
        ("sys.exit()", Outcome.COMPLETED, None),
        ("raise KeyboardInterrupt", Outcome.FAILED, "ServerApp was interrupted"),
    ],
)
def test_other_ways_out_of_main(bench: Bench, code: str, outcome: Outcome, reason: str | None):
    run_id = bench.submit(code)
    bench.launch()
    row = bench.row(run_id)
    assert (row.outcome, row.reason) == (outcome, reason)


def test_an_app_that_cannot_be_imported(bench: Bench):
    run_id = bench.submit("pass\nimport not_a_module_of_anyone")
    assert bench.launch() == "failed"
    run_id = bench.submit("pass", dependencies='"not-a-package-of-anyone>=2"')
    assert bench.launch() == "failed"
    row = bench.row(run_id)
    assert row.reason is not None
    assert row.reason.startswith("the app needs not-a-package-of-anyone>=2, which the SuperExec on ")
    (attempt,) = bench.control.attempts(str(run_id))
    assert attempt.error is not None
    assert "-m pip install 'not-a-package-of-anyone>=2'" in attempt.error


def test_a_killed_process_gives_the_attempt_back(bench: Bench):
    run_id = bench.submit("if context.attempt == 1: os.kill(os.getpid(), 9)\nprint('attempt', context.attempt)")
    assert bench.launch() == "given back"
    row = bench.row(run_id)
    assert (row.status, row.outcome) == (RunStatus.PENDING, None)
    (attempt,) = bench.control.attempts(str(run_id))
    assert (attempt.exit_code, attempt.error) == (-9, "ServerApp was killed by SIGKILL")
    assert bench.launch() == "completed"
    assert bench.log(run_id) == [("INFO", "attempt 2")]


def test_a_second_delivery_is_ignored(bench: Bench):
    bench.submit("pass")
    job = bench.job()
    assert bench.launch(job) == "completed"
    assert bench.launch(job) == "ignored"


def test_a_requested_stop_ends_the_process_and_what_it_started(bench: Bench):
    body = "import subprocess\nchild = subprocess.Popen(['sleep', '600'])\nprint('child', child.pid)\n" + FOREVER
    run_id = bench.submit(body)
    begun: list[float] = []

    def stop(_pid: int) -> None:
        begun.append(time.monotonic())
        bench.control.stop(str(run_id), actor="me", reason="enough")

    assert bench.launch_and(stop) == "stopped"
    assert time.monotonic() - begun[0] < 3
    row = bench.row(run_id)
    assert (row.outcome, row.reason) == (Outcome.STOPPED, "stopped as requested")
    assert is_gone(bench.pid(run_id))
    child = next(int(text.split()[1]) for _, text in bench.log(run_id) if text.startswith("child"))
    assert is_gone(child)


def test_a_process_that_ignores_sigterm_is_killed_within_three_seconds(bench: Bench):
    run_id = bench.submit("import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FOREVER)
    begun: list[float] = []

    def stop(_pid: int) -> None:
        begun.append(time.monotonic())
        bench.control.stop(str(run_id), actor="me")

    assert bench.launch_and(stop) == "stopped"
    assert time.monotonic() - begun[0] < 3
    assert bench.control.attempts(str(run_id))[0].exit_code == -signal.SIGKILL


def test_an_app_that_fails_of_its_stop_is_stopped(bench: Bench):
    body = "import signal\n\ndef fail(*_): raise RuntimeError('cut')\nsignal.signal(signal.SIGTERM, fail)\n" + FOREVER
    run_id = bench.submit(body)
    assert bench.launch_and(lambda _pid: bench.control.stop(str(run_id), actor="me")) == "stopped"


def hear_nothing(_listener: object, _seconds: float) -> list[object]:
    time.sleep(0.01)
    return []


def test_an_app_that_fails_before_its_stop_is_heard_of_is_stopped(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flq.exec.scribe.LOOK_SECONDS", 600)
    monkeypatch.setattr("flq.link.notify.Listener.wait", hear_nothing)
    run_id = bench.submit("import signal\nsignal.signal(signal.SIGUSR1, lambda *_: sys.exit('cut'))\n" + FOREVER)

    def stop(pid: int) -> None:
        bench.control.stop(str(run_id), actor="me")
        os.kill(pid, signal.SIGUSR1)

    assert bench.launch_and(stop) == "stopped"


def test_a_fenced_attempt_is_killed_at_once_and_records_nothing(bench: Bench):
    run_id = bench.submit(FOREVER)

    def take_over(_pid: int) -> None:
        with bench.db.transaction() as tx:
            tx.execute("UPDATE flq_state.run_attempt SET lease_until = '-infinity'")
        eventually(lambda: attempts.release_abandoned(bench.db), what="the take-over")

    assert bench.launch_and(take_over) == "given back"
    assert bench.row(run_id).status == RunStatus.PENDING
    assert is_gone(bench.pid(run_id))


def test_the_wall_time_limit(bench: Bench):
    run_id = bench.submit(FOREVER, wall_time_limit=1.0)
    assert bench.launch() == "failed"
    assert bench.row(run_id).reason == "its wall-time limit of 1 s passed"
    assert is_gone(bench.pid(run_id))


def test_a_cut_lifeline_ends_the_process_and_gives_the_attempt_back(bench: Bench):
    run_id = bench.submit(FOREVER)
    assert bench.launch_and(lambda _pid: bench.lifeline.cut()) == "given back"
    assert bench.row(run_id).status == RunStatus.PENDING
    assert bench.control.attempts(str(run_id))[0].error == "the SuperExec shut down"
    assert is_gone(bench.pid(run_id))


@contextmanager
def sigterm_passed_on() -> Iterator[list[int]]:
    passed_on: list[int] = []
    former = signal.signal(signal.SIGTERM, lambda number, _frame: passed_on.append(number))
    yield passed_on
    signal.signal(signal.SIGTERM, former)


def test_a_sigterm_for_a_revoked_job_stops_the_run_and_is_passed_on(bench: Bench):
    run_id = bench.submit(FOREVER)

    def terminate(_pid: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        attempts.stop(bench.db, run_id, actor="celery", reason="as the main process says it")

    with sigterm_passed_on() as passed_on:
        assert bench.launch_and(terminate) == "stopped"
    assert passed_on == [signal.SIGTERM]
    assert bench.row(run_id).reason == "its job was terminated through Celery"


def test_a_sigterm_from_somebody_else_gives_the_attempt_back(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flq.exec.launcher.VERDICT_SECONDS", 0.2)
    run_id = bench.submit(FOREVER)
    with sigterm_passed_on() as passed_on:
        assert bench.launch_and(lambda _pid: os.kill(os.getpid(), signal.SIGTERM)) == "given back"
    assert passed_on == [signal.SIGTERM]
    assert bench.row(run_id).status == RunStatus.PENDING


def test_an_app_sees_no_secrets_and_has_its_own_place(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    for name in ("FLQ_DSN", "FLQ_BROKER"):
        monkeypatch.setenv(name, "secret")
    body = "import json\nprint(json.dumps([dict(os.environ), sys.argv, os.getcwd(), os.getpid() == os.getpgrp()]))"
    run_id = bench.submit(body)
    bench.launch()
    environ, argv, folder, leads = json.loads(bench.log(run_id)[0][1])
    name = bench.row(run_id).name
    assert not {"FLQ_DSN", "FLQ_BROKER", "FLQ_READY_FD"} & set(environ)
    assert bench.dsn not in json.dumps([environ, argv])
    assert (environ["OMP_NUM_THREADS"], environ["PYTHONHASHSEED"]) == ("1", "0")
    assert folder == str(bench.home / "work" / name)
    assert leads
    assert not Path(folder).exists(), "a working folder that stayed empty is removed"


def test_descriptors_are_not_handed_on_to_what_the_app_starts(bench: Bench):
    body = "import subprocess\nprint(subprocess.check_output(['ls', '/proc/self/fd'], text=True, close_fds=False))"
    run_id = bench.submit(body)
    bench.launch()
    descriptors = {int(text) for _, text in bench.log(run_id) if text}
    assert descriptors <= {0, 1, 2, 3, 4}, "the standard streams, the pipe of check_output, and what ls opens"


def test_the_same_seed_draws_the_same_numbers(bench: Bench):
    body = "import random, numpy\nprint(random.random(), numpy.random.random())"
    drawn = []
    for seed in (1, 1, 2):
        run_id = bench.submit(body, seed=seed)
        bench.launch()
        drawn.append(bench.log(run_id))
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_history_says_how_many_threads_computed(bench: Bench):
    bench.submit("pass")
    bench.launch()
    with bench.db.connection() as connection:
        rows = connection.execute("SELECT details FROM flq.events WHERE event = 'running'").fetchall()
    variables = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    assert rows == [({"threads": dict.fromkeys(variables, "1")},)]


def test_an_app_has_checkpoints_and_goes_on_behind_the_last_one(bench: Bench):
    body = """
from flq.apps import MetricRecord, RecordDict
state = context.restored or RecordDict({"loop": MetricRecord({"done": 0})})
print(context.attempt, state["loop"]["done"])
context.checkpoint(RecordDict({"loop": MetricRecord({"done": state["loop"]["done"] + 1})}), metrics={"loss": 0.5})
if context.attempt == 1:
    os.kill(os.getpid(), 9)
"""
    run_id = bench.submit(body)
    assert bench.launch() == "given back"
    with bench.db.connection() as connection:  # without the pause between attempts
        connection.execute("UPDATE flq_state.run SET not_before = NULL")
    assert bench.launch() == "completed"
    printed = [text for _, text in bench.log(run_id) if text[:1] in {"1", "2"}]
    assert printed == ["1 0", "2 1"]
    assert [(row.round, row.status, row.metrics) for row in bench.control.rounds(bench.row(run_id).name)] == [
        (number, "committed", {"loss": 0.5}) for number in (1, 2)
    ]


def test_output_keeps_its_order_and_log_records_their_level(bench: Bench):
    body = """
import logging, warnings
print('a')
print('b', file=sys.stderr)
logging.getLogger('mine').warning('c')
logging.getLogger('mine').debug('never')
print('d')
os.write(2, b'e \\xff \\0 |\\n')
sys.stdout.write('f' * 20000 + '\\n')
"""
    run_id = bench.submit(body)
    bench.launch()
    lines = bench.log(run_id)
    assert lines[:4] == [("INFO", "a"), ("INFO", "b"), ("WARNING", "mine: c"), ("INFO", "d")]
    assert lines[4] == ("INFO", "e \N{REPLACEMENT CHARACTER} \N{REPLACEMENT CHARACTER} |")
    assert "".join(text for _, text in lines[5:]) == "f" * 20000


def test_much_output_is_complete_and_in_order(bench: Bench):
    run_id = bench.submit("for number in range(30000): print(number)")
    assert bench.launch() == "completed"
    with bench.db.connection() as connection:
        rows = connection.execute("SELECT text FROM flq.logs WHERE source = 'serverapp' ORDER BY line_id").fetchall()
    assert [int(text) for (text,) in rows] == list(range(30000))
    assert bench.row(run_id).outcome == Outcome.COMPLETED


def test_a_thread_of_the_app_does_not_hold_up_the_run_for_ever(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flq.exec.guard.FAREWELL_SECONDS", 0.3)
    run_id = bench.submit("import threading\nthreading.Thread(target=time.sleep, args=(600,)).start()")
    assert bench.launch() == "completed"
    assert is_gone(bench.pid(run_id))


def test_the_spare_process_is_used_once_and_replaced(bench: Bench):
    launcher = bench.make_launcher(spare=True)
    first = bench.submit("print(os.getpid())")
    job = bench.job()
    launcher._prepare()
    assert launcher._spare is not None
    spare = launcher._spare.pid
    assert launcher.launch(run_id=job.run_id, attempt=job.attempt, job_id=job.job_id) == "completed"
    assert bench.log(first) == [("INFO", str(spare))]
    assert launcher._spare is not None
    second = launcher._spare.pid
    assert second != spare
    os.kill(second, signal.SIGKILL)
    eventually(launcher._spare.ended, what="the death of the spare")
    again = bench.submit("print('cold')")
    job = bench.job()
    assert launcher.launch(run_id=job.run_id, attempt=job.attempt, job_id=job.job_id) == "completed"
    assert bench.log(again) == [("INFO", "cold")]
    third = launcher._spare.pid
    launcher.close()
    assert is_gone(third)


def test_a_serverapp_dies_with_its_launcher(bench: Bench):
    run_id = bench.submit(FOREVER)
    job = bench.job()
    child = os.fork()
    if child == 0:  # pragma: no cover - the launcher's process
        try:
            launcher = bench.make_launcher()
            launcher.launch(run_id=job.run_id, attempt=job.attempt, job_id=job.job_id)
        finally:
            os._exit(1)
    eventually(lambda: ("INFO", "here") in bench.log(run_id), what="the app's output")
    pid = bench.pid(run_id)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    eventually(lambda: is_gone(pid), what="the end of the ServerApp")
    assert bench.row(run_id).status == RunStatus.RUNNING, "nobody could record it; its lease will"


def test_an_outage_of_the_database_is_waited_for(bench: Bench):
    run_id = bench.submit("for number in range(20):\n    print(number)\n    time.sleep(0.05)\nprint('here')")

    def cut_connections() -> None:
        with bench.db.connection() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                " AND application_name LIKE 'flq superexec%' AND pid <> pg_backend_pid()"
            )

    cut_connections()
    assert bench.launch_and(lambda _pid: cut_connections(), printed="3") == "completed"
    assert [text for _, text in bench.log(run_id)] == [*map(str, range(20)), "here"]
