from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from flq.cli import run as run_command
from flq.cli.main import main
from flq.cli.sql import VIEWS, statements
from flq.errors import IllegalTransition
from flq.models.views import VIEWS as MODELS_VIEWS
from flq.wire.runs import EventRow, RunRow
from flq.wire.status import RunStatus
from tests.unit.cli_double import DONE, FAILED, NODE, RUN, SUPEREXEC, THEN, ControlDouble, line

Invoke = Callable[..., Result]


@pytest.fixture
def door() -> ControlDouble:
    return ControlDouble()


@pytest.fixture
def invoke(door: ControlDouble, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Invoke:
    monkeypatch.setenv("FLQ_DSN", "host=nowhere password=secret")
    monkeypatch.setenv("FLQ_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flq.link.control.DbControl", lambda _dsn: door)
    runner = CliRunner()
    return lambda *arguments, **options: runner.invoke(main, arguments, **options)


@pytest.fixture
def app(tmp_path: Path) -> str:
    folder = tmp_path / "app"
    (folder / "tiny").mkdir(parents=True)
    (folder / "tiny" / "__init__.py").write_text("")
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "tiny"\nversion = "1"\n'
        '[tool.flq.app]\nserverapp = "tiny:server"\nclientapp = "tiny:client"\n'
        "[tool.flq.app.config]\nrounds = 3\nlr = 0.1\n"
    )
    return str(folder)


def data(result: Result) -> Any:
    answer = json.loads(result.stdout)
    assert (answer["schema_version"], answer["status"], answer["error"]) == (1, "ok", None)
    return answer["data"]


# ls, nodes, show, stop


def test_ls(invoke: Invoke, door: ControlDouble):
    door.rows = [RUN, replace(DONE, name="calm-fox")]
    lines = invoke("ls").stdout.splitlines()
    assert lines[0].split() == ["RUN", "APP", "STATUS", "ROUNDS", "TASKS", "RESULTS", "ERRORS", "SUBMITTED"]
    assert lines[1].split()[:7] == ["brave-otter", "digits", "running", "1/3", "2", "11", "1"]
    assert lines[2].split()[:3] == ["calm-fox", "digits", "completed"]
    assert [row["name"] for row in data(invoke("ls", "--json"))] == ["brave-otter", "calm-fox"]
    assert [row["name"] for row in data(invoke("ls", "--json", "--active"))] == ["brave-otter"]
    assert len(data(invoke("ls", "--json", "-n", "1"))) == 1
    assert door.closed


def test_ls_without_runs(invoke: Invoke, door: ControlDouble):
    door.rows = []
    result = invoke("ls")
    assert result.stdout == ""
    assert "flq run" in result.stderr


def test_nodes(invoke: Invoke, door: ControlDouble):
    door.node_rows = [NODE, replace(NODE, name="node-2", online=False)]
    assert "node-1  2   yes" in invoke("nodes").stdout
    assert [row["name"] for row in data(invoke("nodes", "--json"))] == ["node-1", "node-2"]
    assert [row["node_id"] for row in data(invoke("nodes", "--online", "--json"))] == ["2"]


def test_show(invoke: Invoke, door: ControlDouble):
    door.rows = [FAILED]
    text = invoke("show", "brave-otter").stdout
    for told in ("brave-otter (7)", "failed: ServerApp raised", "model.bin", "submitted", "lr=0.1", "  line 3"):
        assert told in text
    picture = data(invoke("show", "7", "--json"))
    assert set(picture) == {"run", "waiting", "attempts", "rounds", "events", "artifacts"}
    assert picture["rounds"][0]["duration"] == 0.12
    assert picture["artifacts"][0]["size"] == 7


def test_show_of_an_unfinished_run_says_what_it_waits_for(invoke: Invoke, door: ControlDouble):
    door.causes = [("no_superexec", "no SuperExec is alive"), ("no_superlink", "no SuperLink is alive")]
    assert "no SuperExec is alive" in invoke("show", "brave-otter").stdout
    assert data(invoke("show", "brave-otter", "--json"))["waiting"] == "no SuperExec is alive"


def test_show_tells_where_a_run_comes_from_and_what_it_has_used(invoke: Invoke, door: ControlDouble):
    door.rows = [replace(RUN, forked_from="calm-fox", forked_from_round=5, wall_time_limit=60.0, active_time=12.0)]
    text = invoke("show", "brave-otter").stdout
    assert "calm-fox, behind round 5" in text
    assert "12.0 s of 60.0 s" in text
    door.rows = [replace(RUN, rerun_of="calm-fox")]
    assert "calm-fox, run again from scratch" in invoke("show", "brave-otter").stdout


def test_show_tells_of_many_nodes_that_confirm_a_stop_in_one_line(
    invoke: Invoke, door: ControlDouble, monkeypatch: pytest.MonkeyPatch
):
    stops = [EventRow(at=THEN, event="stopped on node", actor=f"node-{number}", reason=None) for number in range(300)]
    monkeypatch.setattr(door, "events", lambda _run: stops)
    text = invoke("show", "brave-otter").stdout
    assert text.count("stopped on node") == 1
    assert "300 nodes" in text
    assert len(data(invoke("show", "brave-otter", "--json"))["events"]) == 300


def test_an_unknown_run(invoke: Invoke):
    result = invoke("show", "nobody")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: there is no run 'nobody'\nhint: `flq ls` lists the runs\n"
    assert json.loads(invoke("show", "nobody", "--json").stdout)["error"]["code"] == "run_unknown"


def test_stop(invoke: Invoke, door: ControlDouble):
    door.rows = [replace(RUN, stop_requested=True)]
    result = invoke("stop", "brave-otter", "--reason", "wrong data")
    assert result.stderr == "brave-otter is being stopped\n"
    assert [(run, reason) for run, _, reason in door.stopped] == [("brave-otter", "wrong data")]
    door.rows = [DONE]
    assert invoke("stop", "brave-otter").stderr == "brave-otter is finished: completed\n"
    assert data(invoke("stop", "brave-otter", "--json"))["status"] == "finished"


# explain, resume, fork, rerun


def test_explain_tells_every_cause_with_the_way_out(invoke: Invoke, door: ControlDouble):
    door.causes = [("no_superexec", "no SuperExec is alive"), ("starting", "its ServerApp is starting")]
    lines = invoke("explain", "brave-otter").stdout.splitlines()
    assert lines[0] == "brave-otter is running"
    assert lines[1::2] == ["- no SuperExec is alive", "- its ServerApp is starting"]
    assert "flq superexec" in lines[2]
    found = data(invoke("explain", "brave-otter", "--json"))
    assert (found["run"], found["status"]) == ("brave-otter", "running")
    assert [cause["cause"] for cause in found["causes"]] == ["no_superexec", "starting"]
    assert found["causes"][1]["hint"] is None


def test_explain_of_a_finished_run_says_how_it_ended(invoke: Invoke, door: ControlDouble):
    door.rows = [FAILED]
    assert invoke("explain", "brave-otter").stdout == f"brave-otter is failed: {FAILED.reason}\n"
    assert data(invoke("explain", "brave-otter", "--json"))["causes"] == []


def test_resume_prints_the_run_and_returns(invoke: Invoke, door: ControlDouble):
    result = invoke("resume", "brave-otter", "--wall-time-limit", "7200")
    assert (result.exit_code, result.stdout) == (0, "brave-otter\n")
    assert door.resumed == [("brave-otter", 7200.0)]
    door.rows = [RUN, DONE]
    assert invoke("resume", "brave-otter", "--wait").exit_code == 0
    door.rows = [RUN, FAILED]
    assert json.loads(invoke("resume", "brave-otter", "--wait", "--json").stdout)["error"]["code"] == "run_failed"


def test_a_run_that_cannot_be_resumed_is_an_error(invoke: Invoke, door: ControlDouble):
    door.errors = [IllegalTransition("brave-otter has completed", hint="flq rerun brave-otter")]
    result = invoke("resume", "brave-otter")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: brave-otter has completed\nhint: flq rerun brave-otter\n"


def test_fork_takes_the_run_s_configuration_with_overrides(invoke: Invoke, door: ControlDouble):
    result = invoke("fork", "brave-otter", "--from-round", "5", "-c", "lr=0.5", "--name", "lower")
    assert (result.exit_code, result.stdout) == (0, "brave-otter\n")
    ((run, derivation),) = door.derived
    assert (run, derivation.from_round, derivation.name) == ("brave-otter", 5, "lower")
    assert derivation.config == {**RUN.config, "lr": 0.5}


def test_fork_refuses_what_is_no_round_and_no_setting_of_the_run(invoke: Invoke, door: ControlDouble):
    for options in ([], ["--from-round", "-1"], ["--from-round", "5", "-c", "nonsense=1"]):
        assert invoke("fork", "brave-otter", *options).exit_code == 2
    assert door.derived == []


def test_rerun_repeats_a_run_from_scratch(invoke: Invoke, door: ControlDouble):
    assert invoke("rerun", "brave-otter", "--name", "again", "--json").exit_code == 0
    ((run, derivation),) = door.derived
    assert (run, derivation.from_round, derivation.config, derivation.name) == ("brave-otter", None, None, "again")


# logs


def test_logs(invoke: Invoke, door: ControlDouble):
    door.pages = [[line("b", "node-1", line_id=2)], [line("a", line_id=1)]]
    assert invoke("logs", "brave-otter").stdout == "a\n[node-1] b\n"
    door.pages = [[line("b", "node-1", line_id=2), line("a", line_id=1)]]
    assert [row["text"] for row in data(invoke("logs", "brave-otter", "--json", "--source", "node-1"))] == ["b"]


def test_logs_that_are_followed(invoke: Invoke, door: ControlDouble):
    door.rows, door.pages = [RUN, RUN, DONE], [[line("a")], [], [line("b")]]
    result = invoke("logs", "-f", "brave-otter")
    assert (result.exit_code, result.stdout) == (0, "a\nb\n")
    door.rows, door.pages = [DONE], [[line("a")]]
    *events, last = invoke("logs", "-f", "brave-otter", "--json").stdout.splitlines()
    assert [json.loads(event)["text"] for event in events] == ["a"]
    assert json.loads(last)["data"]["name"] == "brave-otter"
    door.rows = [RUN]
    assert invoke("logs", "-f", "brave-otter", "--timeout", "0.01").exit_code == 3


# pull


def test_pull_fetches_everything_into_a_folder_of_the_runs_name(invoke: Invoke, tmp_path: Path):
    result = invoke("pull", "brave-otter")
    assert result.stdout.splitlines() == ["brave-otter/model.bin", "brave-otter/plots/loss.txt"]
    assert (tmp_path / "brave-otter" / "model.bin").read_bytes() == b"weights"
    assert (tmp_path / "brave-otter" / "plots" / "loss.txt").read_bytes() == b""
    assert sorted(path.name for path in (tmp_path / "brave-otter").iterdir()) == ["model.bin", "plots"]


def test_pull_overwrites_only_if_told_so(invoke: Invoke, tmp_path: Path):
    target = tmp_path / "out" / "model.bin"
    target.parent.mkdir()
    target.write_bytes(b"mine")
    result = invoke("pull", "brave-otter", "model.bin", "-o", "out")
    assert result.exit_code == 1
    assert "--force" in result.stderr
    assert target.read_bytes() == b"mine"
    assert data(invoke("pull", "brave-otter", "model.bin", "-o", "out", "--force", "--json")) == [
        {"name": "model.bin", "path": "out/model.bin", "size": 7}
    ]
    assert target.read_bytes() == b"weights"


def test_pull_of_what_is_not_there(invoke: Invoke, door: ControlDouble):
    result = invoke("pull", "brave-otter", "nothing")
    assert result.exit_code == 1
    assert "it has model.bin, plots/loss.txt" in result.stderr
    door.stored = []
    assert "no artifacts" in invoke("pull", "brave-otter").stderr


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "a\\evil", ""])
def test_pull_refuses_names_that_lead_out_of_the_folder(invoke: Invoke, door: ControlDouble, name: str):
    door.stored, door.files = [name], {name: b"x"}
    assert invoke("pull", "brave-otter", "-o", "out").exit_code == 1
    assert not Path("out").exists()


def test_a_download_that_fails_leaves_nothing(
    invoke: Invoke, door: ControlDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(door, "artifact", _corrupt)
    assert invoke("pull", "brave-otter", "model.bin", "-o", "out").exit_code == 1
    assert not (tmp_path / "out").exists()


def _corrupt(_run: str, _name: str, _into: memoryview) -> None:
    from flq.errors import ObjectCorrupt

    raise ObjectCorrupt


# sql


def test_sql(invoke: Invoke):
    assert invoke("sql", "select 1").stdout.splitlines() == ["run          n", "brave-otter  1", "calm-fox"]
    assert data(invoke("sql", "select 1", "--json")) == [{"run": "brave-otter", "n": 1}, {"run": "calm-fox", "n": None}]
    rows = list(csv.reader(io.StringIO(invoke("sql", "select 1", "--csv").stdout)))
    assert rows == [["run", "n"], ["brave-otter", "1"], ["calm-fox", ""]]
    assert invoke("sql", "nonsense").exit_code == 1
    assert invoke("sql", "x", "--csv", "--json").exit_code == 2


def test_sql_reads_statements_from_stdin(invoke: Invoke, door: ControlDouble):
    assert invoke("sql", input="select 1;\n-- no; end\nselect ';' ;").exit_code == 0
    assert door.queries == ["select 1", "-- no; end\nselect ';'"]


def test_statements_end_at_semicolons_outside_of_quotes_and_comments():
    text = """select 'a;''b' ; select "c;d" /* e; */ ; -- f;\nselect 2"""
    assert statements(text) == ["select 'a;''b'", 'select "c;d" /* e; */', "-- f;\nselect 2"]
    assert statements(" ; ;\n") == []


def test_the_views_that_sql_lists_are_those_that_exist(invoke: Invoke):
    assert list(VIEWS) == list(MODELS_VIEWS)
    assert [row["view"] for row in data(invoke("sql", "--views", "--json"))] == list(MODELS_VIEWS)


# run


def test_run_prints_the_name_and_returns(invoke: Invoke, door: ControlDouble, app: str):
    result = invoke("run", app)
    assert (result.exit_code, result.stdout) == (0, "brave-otter\n")
    (submission,) = door.submitted
    assert (submission.app, submission.config) == ("tiny", {"rounds": 3, "lr": 0.1})
    assert submission.bundle
    assert submission.min_nodes == 0
    assert data(invoke("run", app, "--json"))["name"] == "brave-otter"
    first, second = door.submitted
    assert first.idempotency_key != second.idempotency_key
    assert first.seed != second.seed


def test_run_hands_its_options_on(invoke: Invoke, door: ControlDouble, app: str):
    options = ["-c", "rounds=5 lr=0.5", "--on", "a,site=b", "--on", "node-1", "--name", "mine", "--seed", "4"]
    options += ["--priority", "2", "--wall-time-limit", "60", "--nodes", "1"]
    assert invoke("run", app, *options, "--keep-checkpoints", "all", "--keep-replies").exit_code == 0
    (submission,) = door.submitted
    assert submission.config == {"rounds": 5, "lr": 0.5}
    assert submission.select == ("a", "site=b", "node-1")
    assert (submission.name, submission.seed, submission.priority) == ("mine", 4, 2)
    assert (submission.wall_time_limit, submission.min_nodes) == (60.0, 1)
    assert (submission.keep_checkpoints, submission.keep_replies) == (0, True)
    assert invoke("run", app, "--keep-checkpoints", "5").exit_code == 0
    assert (door.submitted[1].keep_checkpoints, door.submitted[1].keep_replies) == (5, False)


@pytest.mark.parametrize("row", [DONE, FAILED])
@pytest.mark.parametrize("flag", ["--stream", "--wait"])
def test_the_exit_code_tells_the_outcome(invoke: Invoke, door: ControlDouble, app: str, row: RunRow, flag: str):
    door.rows, door.pages = [RUN, RUN, row], [[line("accuracy=0.9")]]
    result = invoke("run", app, flag)
    assert result.exit_code == (0 if row is DONE else 1)
    assert result.stdout == ("accuracy=0.9\n" if flag == "--stream" else "brave-otter\n")
    door.rows = [RUN, row]
    assert json.loads(invoke("run", app, flag, "--json").stdout.splitlines()[-1])["data"]["outcome"] == row.outcome


def test_run_gives_up_waiting_after_its_timeout(invoke: Invoke, app: str):
    result = invoke("run", app, "--wait", "--timeout", "0.01")
    assert result.exit_code == 3
    assert "it goes on" in result.stderr


def test_run_that_is_interrupted_goes_on(
    invoke: Invoke, door: ControlDouble, app: str, monkeypatch: pytest.MonkeyPatch
):
    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(door, "wait", interrupt)
    for flags in (["--stream"], ["--wait"], ["--stream", "--json"]):
        result = invoke("run", app, *flags)
        assert result.exit_code == 130
        told = result.stdout if "--json" in flags else result.stderr
        assert "flq logs -f brave-otter" in told
        assert "flq stop brave-otter" in told


def test_run_needs_its_nodes(invoke: Invoke, door: ControlDouble, app: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run_command, "NODE_PATIENCE", 0.0)
    result = invoke("run", app, "--nodes", "3")
    assert result.exit_code == 1
    assert "3 nodes are required, 1 are online" in result.stderr
    assert door.submitted == []


@pytest.mark.parametrize(
    "options",
    [
        ["--stream", "--wait"],
        ["--timeout", "3"],
        ["-c", "nonsense=1"],
        ["--nodes", "0"],
        ["--keep-checkpoints", "0"],
        ["--keep-checkpoints", "some"],
        ["--wall-time-limit", "0"],
    ],
)
def test_run_with_wrong_options_is_usage(invoke: Invoke, door: ControlDouble, app: str, options: list[str]):
    assert invoke("run", app, *options).exit_code == 2
    assert door.submitted == []


def test_run_without_a_project(invoke: Invoke, tmp_path: Path):
    result = invoke("run", str(tmp_path / "nowhere"))
    assert result.exit_code == 2
    assert "pyproject.toml" in result.stderr


def test_a_submission_that_was_cut_off_is_repeated_with_its_key(
    invoke: Invoke, door: ControlDouble, app: str, monkeypatch: pytest.MonkeyPatch
):
    from flq.errors import DatabaseUnreachable

    monkeypatch.setattr(run_command, "RETRY_SECONDS", 0)
    door.errors = [DatabaseUnreachable("gone")]
    assert invoke("run", app).exit_code == 0
    assert len(door.submitted) == 1


# where the federation is


def test_without_a_federation_the_way_to_one_is_named(invoke: Invoke, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("FLQ_DSN")
    result = invoke("ls")
    assert (result.exit_code, result.stdout) == (5, "")
    assert "flq up" in result.stderr
    assert json.loads(invoke("ls", "--json").stdout)["error"]["code"] == "unreachable"
    result = invoke("status", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["data"]["state"] == "down"
    assert data(invoke("down", "--json")) == {"stopped": False}


def test_a_project_can_name_its_federation(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, app: str):
    monkeypatch.delenv("FLQ_DSN")
    with (Path(app) / "pyproject.toml").open("a") as file:
        file.write('[tool.flq]\nfederation = "here"\n[tool.flq.federations.here]\ndsn = "host=there"\n')
    assert invoke("run", app).exit_code == 0
    monkeypatch.chdir(app)
    assert invoke("ls").exit_code == 0
    assert invoke("ls", "--federation", "elsewhere").exit_code == 2


def test_a_federation_with_a_dsn_is_not_ours_to_start(invoke: Invoke):
    for name in ("up", "down"):
        result = invoke(name)
        assert result.exit_code == 2
        assert "secret" not in result.output


def test_status_of_a_federation_elsewhere(invoke: Invoke):
    assert invoke("status").stdout == "environment: reachable, 1 of 1 nodes online\n"
    assert data(invoke("status", "--json"))["online"] == 1


def test_status_tells_of_superexecs_that_take_no_jobs(invoke: Invoke, door: ControlDouble):
    lost = replace(SUPEREXEC, host="west", online=False, consuming=None)
    door.superexec_rows = [SUPEREXEC, lost, replace(SUPEREXEC, host="east", pid=7, consuming=False)]
    result = invoke("status")
    assert (result.exit_code, result.stdout) == (1, "environment: reachable, 1 of 1 nodes online\n")
    assert "takes no jobs from the broker: on east, pid 7" in result.stderr
    answer = json.loads(invoke("status", "--json").stdout)
    assert (answer["error"]["code"], answer["data"]["online"]) == ("superexec_deaf", 1)


@pytest.mark.parametrize("name", ["superlink", "superexec", "monitor"])
def test_servers_need_a_broker(invoke: Invoke, name: str):
    result = invoke(name)
    assert result.exit_code == 2
    assert "FLQ_BROKER" in result.stderr


def test_a_label_needs_a_value(invoke: Invoke):
    result = invoke("supernode", "--name", "a", "--label", "berlin")
    assert result.exit_code == 2
    assert "key=value" in result.stderr


def test_pending_runs_are_active(invoke: Invoke, door: ControlDouble):
    door.rows = [replace(RUN, status=RunStatus.PENDING)]
    assert len(data(invoke("ls", "--active", "--json"))) == 1
