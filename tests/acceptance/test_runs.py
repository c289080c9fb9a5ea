"""Runs through the command line, on a federation of four nodes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.flq_command import Flq
from tests.acceptance.make_app import CLIENT, make_app
from tests.waiting import eventually

pytestmark = pytest.mark.acceptance


def on_training(statement: str) -> str:
    """The client that begins its training with a statement."""
    return CLIENT.replace('print("training', f'{statement}\n        print("training')


def statuses(flq: Flq) -> dict[str, tuple[str, str]]:
    return {run["name"]: (run["status"], run["outcome"]) for run in flq.json("ls")}


def test_two_runs_at_once_with_different_apps_on_different_nodes(flq: Flq, tmp_path: Path):
    one = make_app(tmp_path / "one", "one")
    two = make_app(tmp_path / "two", "two", client=CLIENT.replace("+= 1", "+= 10"))
    first = flq.start("run", one, "--wait", "--on", "node-1,node-2", "--name", "first")
    second = flq.start("run", two, "--wait", "--on", "node-3,node-4", "--name", "second")
    for process in (first, second):
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, out + err
    found = statuses(flq)
    assert found["first"] == found["second"] == ("finished", "completed")
    tasks = flq.sql("select run, array_agg(distinct node) as nodes, count(*) as n from flq.tasks group by run")
    used = {row["run"]: (row["nodes"], row["n"]) for row in tasks}
    assert used["first"] == (["node-1", "node-2"], 8)
    assert used["second"] == (["node-3", "node-4"], 8)
    assert "sum 8.0" in flq("logs", "first")
    assert "sum 80.0" in flq("logs", "second")


def test_output_of_serverapp_and_nodes_is_in_the_log(flq: Flq, tmp_path: Path):
    flq("run", make_app(tmp_path), "--wait", "--name", "logged")
    rows = flq.sql("select source, text from flq.logs where run = 'logged'")
    assert {"serverapp", "superexec"} < {row["source"] for row in rows}
    for node in range(1, 5):
        said = [row["text"] for row in rows if row["source"] == f"node-{node}"]
        assert said == [f"training on partition {node - 1}"] * 2


def test_a_serverapp_that_raises_fails_its_run_and_shows_its_own_traceback(flq: Flq, tmp_path: Path):
    server = """
        from flq.apps import ServerApp
        app = ServerApp()

        @app.main()
        def main(grid, context):
            raise ValueError("the learning rate is negative")
    """
    out = flq("run", make_app(tmp_path, server=server), "--wait", "--name", "raises", code=1)
    assert out.strip() == "raises"
    run = flq.json("show", "raises")
    text = json.dumps(run)
    assert "ValueError: the learning rate is negative" in text
    assert "tiny/server.py" in text
    (row,) = flq.sql("select outcome, reason from flq.runs where run = 'raises'")
    assert row["outcome"] == "failed"
    assert "the learning rate is negative" in row["reason"]


def test_a_clientapp_that_raises_is_an_error_result_with_its_traceback(flq: Flq, tmp_path: Path):
    client = on_training('if context.node_config["partition-id"] == 3: raise KeyError("no such column")')
    flq("run", make_app(tmp_path, client=client), "--wait", "--name", "one-bad")
    rows = flq.sql("select node, error_code, error_text from flq.tasks where run = 'one-bad' and status = 'error'")
    assert [row["node"] for row in rows] == ["node-4"] * 2
    assert all("no such column" in row["error_text"] and "tiny/client.py" in row["error_text"] for row in rows)


def test_a_clientapp_that_kills_its_process_does_not_harm_the_node(flq: Flq, tmp_path: Path):
    client = on_training('if context.node_config["partition-id"] == 0: import os; os.kill(os.getpid(), 9)')
    flq("run", make_app(tmp_path / "a", client=client), "--wait", "--name", "crashes")
    rows = flq.sql("select node, error_text from flq.tasks where run = 'crashes' and status = 'error'")
    assert {row["node"] for row in rows} == {"node-1"}
    assert all("SIGKILL" in row["error_text"] for row in rows)
    flq("run", make_app(tmp_path / "b"), "--wait", "--name", "after-the-crash")


SLOW = on_training("import time; time.sleep(600)")


def processes_of(flq: Flq, run: str) -> list[Any]:
    return flq.sql(f"select pid from flq.attempts where run = '{run}' and status = 'claimed'")


def test_stop_ends_a_run_whose_clients_sleep(flq: Flq, tmp_path: Path):
    flq("run", make_app(tmp_path, client=SLOW), "--name", "sleeper")
    leased = "select count(*) as n from flq.tasks where run = 'sleeper' and status = 'leased'"
    eventually(lambda: flq.sql(leased)[0]["n"] >= 2, what="clients at work")
    (attempt,) = processes_of(flq, "sleeper")
    flq("stop", "sleeper")
    eventually(lambda: statuses(flq)["sleeper"] == ("finished", "stopped"), timeout=10, what="the end of the run")
    eventually(lambda: not Path(f"/proc/{attempt['pid']}").exists(), timeout=10, what="the end of the ServerApp")
    # the nodes are free again: another run gets through
    flq("run", make_app(tmp_path / "next"), "--wait", "--timeout", "60")


def test_stream_prints_rounds_and_output_and_json_lines(flq: Flq, tmp_path: Path):
    process = flq.start("run", make_app(tmp_path), "--stream", "--name", "streamed")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    assert out.splitlines()[-1] == "sum 8.0"
    assert re.search(r"round 2/2 .*4 nodes .*loss", err)
    assert "\x1b" not in out + err
    lines = [json.loads(line) for line in flq("run", tmp_path, "--stream", "--json").splitlines()]
    assert all(isinstance(line, dict) for line in lines)
    assert "completed" in json.dumps(lines[-1])


def test_show_ls_logs_and_nodes_are_for_people_too(flq: Flq, tmp_path: Path):
    flq("run", make_app(tmp_path), "--wait", "--name", "shown")
    shown = flq("show", "shown")
    for words in ("completed", "num-rounds", "loss", "accuracy"):
        assert words in shown
    assert "shown" in flq("ls")
    assert "training on partition 0" in flq("logs", "shown", "--source", "node-1")
    assert "node-4" in flq("nodes")
    assert all(node["online"] for node in flq.json("nodes"))


def test_mistakes_are_named_with_the_way_out(flq: Flq, tmp_path: Path):
    app = make_app(tmp_path)
    wrong = flq.json("run", app, "--run-config", "num-round=3", code=2)
    assert "num-rounds" in json.dumps(wrong)
    wrong = flq.json("show", "no-such-run", code=1)
    assert "flq ls" in wrong["hint"] or "did you mean" in wrong["hint"]
    wrong = flq.json("run", tmp_path / "nowhere", code=2)
    assert "nowhere" in wrong["message"]
    wrong = flq.json("up", code=1)
    assert wrong["code"] == "federation_running"
    wrong = flq.json("sql", "drop schema flq", code=1)
    assert wrong["code"] == "query"


def test_run_config_reaches_the_app_with_its_type(flq: Flq, tmp_path: Path):
    flq("run", make_app(tmp_path), "--wait", "--run-config", "num-rounds=3 nodes=4", "--name", "configured")
    assert "sum 12.0" in flq("logs", "configured")
    assert flq.json("show", "configured")["run"]["config"] == {"num-rounds": 3, "nodes": 4}
