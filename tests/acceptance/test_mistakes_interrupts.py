"""Ctrl-C at each stage: the exit code is 130, it is said what goes on, and nothing half-written is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from flq.local import federation
from tests.acceptance.flq_command import PATIENCE, Flq
from tests.acceptance.make_app import CLIENT, make_app
from tests.acceptance.mistakes import Mistake, seen
from tests.waiting import eventually

pytestmark = pytest.mark.acceptance

INTERRUPTED = 130


def start(flq: Flq, *arguments: str | Path) -> subprocess.Popen[str]:
    """Start a command in a process group of its own, as a shell does it in a terminal."""
    return flq.start(*arguments, process_group=0)


def ctrl_c(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """What the terminal does at Ctrl-C; the exit code, and what is printed from then on."""
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in out + err, out + err
    return process.returncode, out, err


def interrupt_at(process: subprocess.Popen[str], stream: Any, said: str) -> tuple[int, str, str]:
    """Press Ctrl-C as soon as `stream` has a line with `said`."""
    for line in stream:
        if said in line:
            return ctrl_c(process)
    raise AssertionError(f"{said} was never said: {process.communicate()}")


def test_while_the_federation_starts(cold: Flq, tmp_path: Path):
    app = make_app(tmp_path)
    for stage in ("starting a federation", "initdb: starting", "postgres: ", "superlink: starting"):
        process = start(cold, "run", app, "--stream")
        told = seen(*interrupt_at(process, process.stderr, stage), code=INTERRUPTED)
        assert told.message == "interrupted before the run was submitted"
        eventually(lambda: not cold.processes(), what="the end of all processes")
        assert not list(cold.home.glob("pg.init-*"))
    cold("up")  # nothing is in its way
    assert cold.json("ls") == []


def test_while_up_starts(cold: Flq):
    process = start(cold, "up")
    seen(*interrupt_at(process, process.stderr, "postgres: "), code=INTERRUPTED)
    eventually(lambda: not cold.processes(), what="the end of all processes")
    assert cold.json("status", code=1)["code"] == "federation_down"


@contextmanager
def locked(flq: Flq, table: str) -> Iterator[Callable[[], bool]]:
    """Hold a table, so that a command comes to a halt at it; tells whether one has."""
    found = federation.addresses(flq.home)
    assert found is not None
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = 'flq'"

    def halted() -> bool:
        with psycopg.connect(found.dsn) as other:
            row = other.execute(waits).fetchone()
        return row is not None and row[0] > 0

    with psycopg.connect(found.dsn) as connection:
        connection.execute(f"LOCK TABLE flq_state.{table} IN ACCESS EXCLUSIVE MODE".encode())
        yield halted


def test_while_the_run_is_submitted(flq: Flq, tmp_path: Path):
    before = flq.json("ls")
    with locked(flq, "bundle") as halted:
        process = start(flq, "run", make_app(tmp_path))
        eventually(halted, what="the submission")
        told = seen(*ctrl_c(process), code=INTERRUPTED)
    assert told.message == "interrupted while the run was submitted"
    assert told.hint == "`flq ls` shows whether it is there"
    assert flq.json("ls") == before


SLOW = CLIENT.replace('print("training', 'import time; time.sleep(600)\n        print("training')


@contextmanager
def slow_run(flq: Flq, name: str) -> Iterator[None]:
    """Afterwards the run must still be there, and be stopped by nobody but us."""
    try:
        yield
        (row,) = [found for found in flq.json("ls") if found["name"] == name]
        assert (row["status"], row["stop_requested"]) == ("running", False)
    finally:
        flq("stop", name)


def test_while_a_run_is_streamed(flq: Flq, tmp_path: Path):
    with slow_run(flq, "streamed"):
        process = start(flq, "run", make_app(tmp_path, client=SLOW), "--stream", "--name", "streamed")
        code, _, err = interrupt_at(process, process.stdout, "FedAvg starts")
        assert code == INTERRUPTED
        assert "streamed goes on. Watch it: flq logs -f streamed; stop it: flq stop streamed" in err


def test_while_a_run_is_streamed_as_json(flq: Flq, tmp_path: Path):
    with slow_run(flq, "lines"):
        process = start(flq, "run", make_app(tmp_path, client=SLOW), "--stream", "--json", "--name", "lines")
        code, out, _ = interrupt_at(process, process.stdout, "FedAvg starts")
        assert code == INTERRUPTED
        envelope = json.loads(out.splitlines()[-1])
        assert envelope["error"]["code"] == "interrupted"
        assert envelope["error"]["message"] == "lines goes on"
        assert envelope["data"]["name"] == "lines"


def test_while_a_run_is_waited_for(flq: Flq, tmp_path: Path):
    with slow_run(flq, "awaited"):
        process = start(flq, "run", make_app(tmp_path, client=SLOW), "--wait", "--name", "awaited")
        eventually(lambda: is_running(flq, "awaited"), what="the run")
        code, out, err = ctrl_c(process)
        assert code == INTERRUPTED
        assert out == "awaited\n"
        assert "awaited goes on." in err


def is_running(flq: Flq, name: str) -> bool:
    return any(row["name"] == name and row["status"] == "running" for row in flq.json("ls"))


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_while_a_log_is_followed(flq: Flq, tmp_path: Path, options: list[str]):
    name = "followed" + "-json" * len(options)
    with slow_run(flq, name):
        flq("run", make_app(tmp_path, client=SLOW), "--name", name)
        process = start(flq, "logs", "-f", name, *options)
        code, out, err = interrupt_at(process, process.stdout, "FedAvg starts")
        told = _told(code, out, err, as_json=bool(options))
        assert told.message == f"interrupted while {name} was followed"
        assert told.hint == f"it is not stopped by that: flq stop {name}"


def _told(code: int, out: str, err: str, *, as_json: bool) -> Mistake:
    if not as_json:
        return seen(code, out, err, code=INTERRUPTED)
    error = json.loads(out.splitlines()[-1])["error"]
    assert (code, error["code"]) == (INTERRUPTED, "interrupted")
    return Mistake(error["message"], error["hint"], out, err)


STORES = """
    import os
    from flq.apps import ServerApp
    app = ServerApp()

    @app.main()
    def main(grid, context):
        grid.save_artifact("model.bin", os.urandom(4 << 20))
"""


def test_while_an_artifact_is_pulled(flq: Flq, tmp_path: Path):
    flq("run", make_app(tmp_path / "app", server=STORES), "--wait", "--name", "stored")
    out = tmp_path / "models"
    with locked(flq, "object_chunk") as halted:
        process = start(flq, "pull", "stored", "-o", out)
        eventually(lambda: halted() and list(out.iterdir()), what="the download")
        told = seen(*ctrl_c(process), code=INTERRUPTED)
    assert told.message == "interrupted"
    assert not out.exists()
    flq("pull", "stored", "-o", out)
    assert (out / "model.bin").stat().st_size == 4 << 20
