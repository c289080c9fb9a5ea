from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from flq.errors import AppLoadError, AttemptFenced, BrokerUnreachable, DatabaseUnreachable, StrategyError, UsageError
from flq.exec import monitor
from flq.exec.celery_app import create_app
from flq.exec.ending import Ending
from flq.exec.guard import Cause
from flq.exec.handover import MARK, Credentials, Report
from flq.exec.lifeline import Lifeline
from flq.exec.output import Output
from flq.exec.publisher import publisher
from flq.exec.serverapp import _judge
from flq.wire.ids import RunId
from flq.wire.lines import MAX_LINE_BYTES
from flq.wire.runs import Job
from flq.wire.status import Outcome

# handover


def test_credentials_go_there_and_back_and_are_not_shown():
    credentials = Credentials(dsn="password=secret", run_id=1, token=2**62 - 1, attempt=3, home=Path("/home"))
    assert Credentials.decode(credentials.encode()) == credentials
    assert "secret" not in repr(credentials)
    assert str(2**62 - 1) not in repr(credentials)


def test_a_report_goes_there_and_back():
    report = Report(outcome="failed", reason="a\nb", error="ä")
    assert Report.decode(report.encode()) == report


@pytest.mark.parametrize("data", [b'{"outcome": "fai', b"[]", b"1", b'{"nonsense": 1}', b"\xff"])
def test_half_a_report_is_none(data: bytes):
    assert Report.decode(data) is None


# lifeline


def test_a_lifeline_tells_when_it_is_cut_and_can_be_cut_again():
    lifeline = Lifeline()
    assert not lifeline.is_cut()
    lifeline.cut()
    lifeline.cut()
    assert lifeline.is_cut()


def test_a_childs_copy_does_not_keep_the_lifeline_alive():
    lifeline = Lifeline()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - the child
        lifeline.hold()
        os.write(write, b"held")
        signal.pause()
    assert os.read(read, 4) == b"held"
    assert not lifeline.is_cut()
    lifeline.cut()
    assert lifeline.is_cut()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(read)
    os.close(write)


# output


@pytest.fixture
def pipe() -> Iterator[tuple[Output, int]]:
    read, write = os.pipe()
    os.set_blocking(read, False)
    yield Output(read), write
    os.close(read)


def texts(output: Output) -> list[tuple[str, str]]:
    return [(line.level, line.text) for line in output.read()]


def test_lines_are_put_together_over_reads(pipe: tuple[Output, int]):
    output, write = pipe
    assert texts(output) == []
    os.write(write, "grü".encode()[:-1])
    assert texts(output) == []
    os.write(write, "ü".encode()[1:] + b"n\n\nrest")
    assert texts(output) == [("INFO", "grün"), ("INFO", "")]
    assert not output.ended
    os.close(write)
    assert texts(output) == [("INFO", "rest")]
    assert output.ended


def test_marked_lines_have_their_level(pipe: tuple[Output, int]):
    output, write = pipe
    os.write(write, f"{MARK}ERROR{MARK}bad\n{MARK}NOISE{MARK}x\n{MARK}ERROR\n{MARK}\nplain\n".encode())
    os.close(write)
    assert texts(output) == [
        ("ERROR", "bad"),
        ("INFO", f"{MARK}NOISE{MARK}x"),
        ("ERROR", ""),
        ("INFO", MARK),
        ("INFO", "plain"),
    ]


def test_a_progress_bar_leaves_what_a_terminal_would_show(pipe: tuple[Output, int]):
    output, write = pipe
    os.write(write, b" 10%\r 50%\r100%\r\nnext\r\n")
    os.close(write)
    assert texts(output) == [("INFO", "100%"), ("INFO", "next")]


def test_long_lines_are_cut(pipe: tuple[Output, int]):
    output, write = pipe
    os.write(write, b"x" * (3 * MAX_LINE_BYTES + 5))
    os.close(write)
    found: list[str] = []
    while not output.ended:
        found += [text for _, text in texts(output)]
    assert [len(text) for text in found] == [MAX_LINE_BYTES] * 3 + [5]


# ending


@pytest.mark.parametrize("cause", [cause for cause in Cause if cause is not Cause.FENCED])
def test_what_has_completed_has_completed_whatever_came_then(cause: Cause):
    ending = Ending.of(cause, -9, Report(outcome="completed"))
    assert (ending.outcome, ending.reason, ending.level) == (Outcome.COMPLETED, None, "INFO")


@pytest.mark.parametrize("report", [None, Report(outcome="completed"), Report(outcome="failed", reason="x")])
def test_a_fenced_attempt_records_nothing(report: Report | None):
    ending = Ending.of(Cause.FENCED, -9, report)
    assert (ending.outcome, ending.reason) == (None, None)


@pytest.mark.parametrize(
    ("cause", "outcome", "reason"),
    [
        (Cause.STOP, Outcome.STOPPED, "stopped as requested"),
        (Cause.TERMINATED, Outcome.STOPPED, "its job was terminated through Celery"),
        (Cause.OVERDUE, Outcome.FAILED, "its wall-time limit passed"),
        (Cause.SHUTDOWN, None, "the SuperExec shut down"),
        (Cause.EVICTED, None, "its pool process was terminated"),
    ],
)
def test_the_end_of_a_process_that_had_to_go(cause: Cause, outcome: Outcome | None, reason: str):
    for report in (None, Report(outcome="failed", reason="ServerApp raised SomethingOdd")):
        ending = Ending.of(cause, -15, report)
        assert (ending.outcome, ending.reason) == (outcome, reason)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (-11, "ServerApp was killed by SIGSEGV"),
        (-77, "ServerApp was killed by signal 77"),
        (3, "ServerApp exited with code 3 before its main had ended"),
        (0, "ServerApp exited with code 0 before its main had ended"),
    ],
)
def test_a_process_that_died_gives_its_attempt_back(code: int, reason: str):
    ending = Ending.of(Cause.ITSELF, code, None)
    assert (ending.outcome, ending.reason, ending.level) == (None, reason, "WARNING")


def test_reports_of_a_process_that_ended_by_itself():
    failed = Ending.of(Cause.ITSELF, 1, Report(outcome="failed", reason="it raised", error="trace"))
    assert (failed.outcome, failed.reason, failed.error) == (Outcome.FAILED, "it raised", "trace")
    lost = Ending.of(Cause.ITSELF, 1, Report(outcome="lost", reason="gone"))
    assert (lost.outcome, lost.reason) == (None, "gone")
    fenced = Ending.of(Cause.ITSELF, 1, Report(outcome="fenced", reason="another"))
    assert (fenced.outcome, fenced.reason) == (None, None)


# the judgement of the ServerApp's process


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (AttemptFenced(), "fenced", "ServerApp was fenced: Another attempt has taken this run over"),
        (DatabaseUnreachable("gone"), "lost", "ServerApp lost its SuperLink: gone"),
        (SystemExit(0), "completed", None),
        (SystemExit("no"), "failed", "ServerApp exited with 'no'"),
        (ValueError(), "failed", "ServerApp raised ValueError"),
        (StrategyError("no replies"), "failed", "ServerApp raised StrategyError: no replies"),
        (AppLoadError("importing x failed:\nTraceback"), "failed", "importing x failed:"),
    ],
)
def test_the_judgement_of_what_main_raised(error: BaseException, outcome: str, reason: str | None, tmp_path: Path):
    report = _judge(error, tmp_path)
    assert report.outcome == outcome
    assert (report.reason or "").startswith(reason or "")


def test_a_hint_of_ours_reaches_the_apps_author(tmp_path: Path):
    error = _judge(StrategyError("no replies", hint="look at the nodes"), tmp_path).error
    assert error is not None
    assert error.endswith("hint: look at the nodes")


# Celery


def test_the_celery_app_speaks_json_and_keeps_no_results():
    conf = create_app("redis://nowhere/0").conf
    assert conf.accept_content == ["json"]
    assert conf.task_serializer == "json"
    assert conf.result_backend is None
    assert not conf.task_acks_late


def test_a_broker_that_is_not_there_is_said_to_be_unreachable(tmp_path: Path):
    publish = publisher(f"redis+socket://{tmp_path}/nothing.sock")
    with pytest.raises(BrokerUnreachable) as caught:
        publish(Job(run_id=RunId(1), name="a", attempt=1, job_id="j"))
    assert caught.value.exit_code == 5


def test_a_broker_that_is_not_there_is_named_without_its_password():
    publish = publisher("redis://:secret@127.0.0.1:1/0")
    with pytest.raises(BrokerUnreachable) as caught:
        publish(Job(run_id=RunId(1), name="a", attempt=1, job_id="j"))
    assert "secret" not in f"{caught.value} {caught.value.hint}"


def test_without_celery_flower_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(monitor, "find_spec", lambda _name: None)
    with pytest.raises(UsageError) as caught:
        monitor.run("redis://nowhere/0", port=1)
    assert caught.value.hint == "pip install 'flq[monitor]'"
