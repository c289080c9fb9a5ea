from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from flq.cli import follow as following
from flq.cli.follow import follow, wait
from flq.cli.live import LiveView
from flq.cli.views import JsonView, LogView, StreamView
from flq.errors import DatabaseUnreachable, TimeoutPassed
from flq.wire.status import RunStatus
from tests.unit.cli_double import DONE, FAILED, ROUND, RUN, ControlDouble, line

PENDING = replace(RUN, status=RunStatus.PENDING, running_at=None)
SECOND = replace(ROUND, round=2, status="running", done=1, metrics={})


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(following, "LEAST_SECONDS", 0)
    monkeypatch.setattr(following, "LOOK_SECONDS", 0)


def test_all_lines_are_shown_also_those_that_came_with_the_end(capsys: pytest.CaptureFixture[str]):
    door = ControlDouble(RUN, DONE, pages=[[line("a")], [], [line("b")], [line("accuracy=0.9")]])
    row = follow(door, "brave-otter", StreamView(), timeout=None)
    assert row == DONE
    assert capsys.readouterr().out.splitlines() == ["a", "b", "accuracy=0.9"]


def test_only_the_serverapps_output_goes_to_stdout(capsys: pytest.CaptureFixture[str]):
    lines = [
        line("mine"),
        line("bad", level="ERROR"),
        line("theirs", "node-1"),
        line("their details", "node-1", level="DEBUG"),
        line("it has started", "superexec"),
        line("it was killed", "superexec", level="WARNING"),
    ]
    view = StreamView()
    follow(ControlDouble(DONE, pages=[lines]), "brave-otter", view, timeout=None)
    view.end(DONE)
    told = capsys.readouterr()
    assert told.out == "mine\n"
    assert told.err.splitlines() == [
        "bad",
        "[node-1] theirs",
        "[superexec] it was killed",
        "round 1/3  2 nodes  loss 0.5  accuracy 0.8123  120 ms",
    ]
    assert "\x1b" not in told.out + told.err
    view.end(FAILED)
    assert capsys.readouterr().err == "brave-otter failed after 4.2 s: ServerApp raised ValueError: boom\n"


def test_a_round_is_told_once_when_it_has_finished(capsys: pytest.CaptureFixture[str]):
    door = ControlDouble(RUN, RUN, DONE, rounds=[replace(ROUND, errors=1), SECOND])
    follow(door, "brave-otter", StreamView(), timeout=None)
    assert capsys.readouterr().err == "round 1/3  2 nodes  loss 0.5  accuracy 0.8123  1 errors  120 ms\n"


def test_rounds_that_are_over_are_not_asked_for_again_until_the_end():
    door = ControlDouble(RUN, RUN, DONE, rounds=[ROUND, replace(ROUND, round=2), replace(SECOND, round=3)])
    follow(door, "brave-otter", StreamView(), timeout=None)
    assert door.asked_since == [1, 3, 1]


def test_a_log_that_is_followed_has_everything_on_stdout(capsys: pytest.CaptureFixture[str]):
    view = LogView()
    follow(ControlDouble(DONE, pages=[[line("a"), line("b", "node-1")]]), "brave-otter", view, timeout=None)
    view.end(FAILED)
    told = capsys.readouterr()
    assert told.out == "a\n[node-1] b\n"
    assert told.err == "brave-otter failed after 4.2 s: ServerApp raised ValueError: boom\n"


def test_json_lines_end_with_the_envelope(capsys: pytest.CaptureFixture[str]):
    view = JsonView()
    door = ControlDouble(PENDING, RUN, FAILED, pages=[[line("a")]])
    view.end(follow(door, "brave-otter", view, timeout=None))
    told = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert [event.get("type") for event in told] == ["log", "run", "round", "run", "run", None]
    assert told[0]["text"] == "a"
    assert told[0]["line_id"] == "1"
    assert told[2]["metrics"] == {"loss": 0.5, "accuracy": 0.81234}
    assert told[-1]["status"] == "error"
    assert told[-1]["data"]["outcome"] == "failed"
    assert told[-1]["error"]["code"] == "run_failed"


def test_a_run_that_does_not_begin_says_why_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(following, "_PATIENT_SECONDS", -1)
    door = ControlDouble(PENDING, PENDING, DONE, rounds=[])
    door.causes = [("no_superexec", "no SuperExec is alive")]
    follow(door, "brave-otter", StreamView(), timeout=None)
    assert capsys.readouterr().err == "waiting: no SuperExec is alive\n"


@pytest.mark.parametrize("wait_for", [wait, lambda door, run, timeout: follow(door, run, LogView(), timeout=timeout)])
def test_a_timeout_names_the_way_to_go_on(wait_for):
    with pytest.raises(TimeoutPassed) as caught:
        wait_for(ControlDouble(RUN), "brave-otter", timeout=0.01)
    assert caught.value.exit_code == 3
    assert caught.value.hint == "flq logs -f brave-otter"


def test_waiting_ends_with_the_run():
    assert wait(ControlDouble(PENDING, RUN, FAILED), "brave-otter", timeout=None) == FAILED


def test_an_outage_is_waited_for_and_told_once(capsys: pytest.CaptureFixture[str]):
    door = ControlDouble(RUN, DONE, rounds=[])
    door.errors = [DatabaseUnreachable("PostgreSQL is away"), DatabaseUnreachable("PostgreSQL is away")]
    assert follow(door, "brave-otter", StreamView(), timeout=None) == DONE
    assert capsys.readouterr().err == "PostgreSQL is away; waiting for it\n"


def test_an_outage_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(following, "OUTAGE_SECONDS", -1)
    door = ControlDouble(RUN)
    door.errors = [DatabaseUnreachable("PostgreSQL is away")]
    with pytest.raises(DatabaseUnreachable):
        wait(door, "brave-otter", timeout=None)


def test_a_terminal_shows_bars_below_the_output():
    terminal = StringIO()
    console = Console(
        file=terminal, force_terminal=True, force_interactive=True, width=100, highlight=False, color_system=None
    )
    lines = [line("accuracy=[0.9]"), line("theirs", "node-1")]
    with LiveView(console) as view:
        view.rounds(RUN, [ROUND, SECOND])
        view.lines(lines)
        view.waiting("no SuperExec is alive")
        view.rounds(PENDING, [])
    shown = terminal.getvalue()
    assert "accuracy=[0.9]" in shown
    assert "[node-1] theirs" in shown
    assert "✓ round 1/3  2 nodes  loss 0.5" in shown
    assert "round 2/3" in shown
    assert "1/4" in shown
    assert "brave-otter pending: no SuperExec is alive" in shown
