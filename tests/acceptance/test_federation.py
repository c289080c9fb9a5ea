"""The embedded federation as a whole: first start, growth, monitoring, the death of its supervisor."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import sysconfig
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.flq_command import Flq, open_python
from tests.acceptance.make_app import make_app
from tests.integration.local_home import temporary_home
from tests.waiting import eventually

pytestmark = pytest.mark.acceptance


def test_run_starts_a_federation_says_so_and_leaves_it_up(cold: Flq, tmp_path: Path):
    process = cold.start("run", make_app(tmp_path), "--wait", "--name", "first")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    assert "flq down" in err
    assert cold.json("status")["state"] == "up"
    assert len(cold.json("nodes")) == 2
    cold("down")
    assert cold.json("status", code=1)["code"] == "federation_down"
    assert not cold.processes()
    # the history is there again after the next start
    cold("up")
    assert [run["name"] for run in cold.json("ls")] == ["first"]


def test_run_grows_the_federation_to_the_nodes_it_needs(prepared: Flq, tmp_path: Path):
    prepared("up", "--nodes", "1")
    (only,) = prepared.json("nodes")
    prepared("run", make_app(tmp_path), "--wait", "--nodes", "3", "--name", "grown")
    nodes = {node["name"]: node for node in prepared.json("nodes")}
    assert sorted(nodes) == ["node-1", "node-2", "node-3"]
    assert nodes["node-1"]["node_id"] == only["node_id"]
    assert all(node["online"] for node in nodes.values())
    assert prepared.sql("select count(distinct node) as n from flq.tasks where run = 'grown'") == [{"n": 3}]


def test_a_killed_supervisor_leaves_nothing_running_and_the_history_intact(prepared: Flq, tmp_path: Path):
    prepared("run", make_app(tmp_path / "a"), "--wait", "--name", "before")
    sleeper = make_app(
        tmp_path / "b", client="""
            import time
            from flq.apps import ClientApp
            app = ClientApp()

            @app.train()
            def train(message, context):
                time.sleep(600)
        """,
    )  # fmt: skip
    # one slot stays free for the run that comes after: this one is there again too, and goes on
    prepared("run", sleeper, "--name", "busy", "--on", "node-1", "--run-config", "nodes=1")
    leased = "select count(*) as n from flq.tasks where run = 'busy' and status = 'leased'"
    eventually(lambda: prepared.sql(leased)[0]["n"] == 1, what="a client at work")
    assert len(prepared.processes()) > 8
    os.kill(prepared.json("status")["pid"], signal.SIGKILL)
    eventually(lambda: not prepared.processes(), timeout=20, what="the end of every process")
    prepared("run", tmp_path / "a", "--wait", "--name", "after")
    found = {run["name"]: run["outcome"] for run in prepared.json("ls")}
    assert found["before"] == found["after"] == "completed"
    assert found["busy"] is None


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - http, on loopback
        return json.load(response)


def test_celery_flower_lists_the_jobs_by_the_run_s_name(prepared: Flq, tmp_path: Path):
    prepared("up")
    url = f"http://127.0.0.1:{(port := free_port())}"
    monitor = prepared.start("monitor", "--port", str(port))
    try:

        def workers() -> bool:
            try:
                return bool(get(f"{url}/api/workers"))
            except OSError:
                return False

        eventually(workers, timeout=30, what="the worker in Celery Flower")
        prepared("run", make_app(tmp_path), "--wait", "--name", "watched")

        def listed() -> bool:
            jobs = get(f"{url}/api/tasks").values()
            return any("watched" in str(job["kwargs"]) and job["state"] == "SUCCESS" for job in jobs)

        eventually(listed, timeout=30, what="the job in Celery Flower")
    finally:
        monitor.terminate()
        monitor.communicate(timeout=20)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_plain_user_with_a_closed_home_folder(tmp_path: Path):
    """Everything belongs to one who is not root, below a folder that nobody else may enter."""
    user = pwd.getpwnam("nobody")
    with temporary_home(mode=0o700) as home:
        app = make_app(home.parent / "app")
        for path in (home.parent, *home.parent.rglob("*")):
            os.chown(path, user.pw_uid, user.pw_gid)
        packages = sysconfig.get_path("purelib")
        flq = Flq(home, {"HOME": str(home.parent), "PYTHONPATH": packages}, python=open_python())
        options: dict[str, Any] = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": home.parent}
        flq("run", app, "--wait", "--name", "plain", **options)
        assert "plain" in flq("ls", **options)
        flq("down", **options)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has root's way of running Postgres")
def test_root_below_a_closed_folder(tmp_path: Path):
    closed = Path(tempfile.mkdtemp(dir=Path.home()))
    flq = Flq(closed / "flq")
    try:
        flq("run", make_app(tmp_path), "--wait", "--name", "closed")
        assert closed.stat().st_mode & 0o777 == 0o700
    finally:
        flq("down")
        shutil.rmtree(closed)
