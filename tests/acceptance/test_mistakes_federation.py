"""Too few nodes, a federation that is up already, addresses that are taken."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from flq.local import federation, layout
from tests.acceptance.flq_command import PATIENCE, Flq
from tests.acceptance.make_app import SERVER, make_app
from tests.acceptance.mistakes import as_json, failed_run, mistake, seen
from tests.integration.local_home import pid_of, temporary_home
from tests.waiting import eventually

pytestmark = pytest.mark.acceptance

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts file systems and gives files away")


# nodes


@contextmanager
def frozen_nodes(flq: Flq) -> Iterator[None]:
    """All nodes go offline, as if their machine had fallen asleep."""
    pid = pid_of(flq.home, "supernode")
    os.kill(pid, signal.SIGSTOP)
    try:
        eventually(lambda: not flq.json("nodes", "--online"), what="the nodes to be offline")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def by_dsn(flq: Flq) -> Flq:
    """The command, told of the federation by its DSN: it will not be grown."""
    found = federation.addresses(flq.home)
    assert found is not None
    return replace(flq, variables={"FLQ_DSN": found.dsn})


def test_no_node_is_online(flq: Flq, tmp_path: Path):
    """The run waits and says for what; with --nodes it is not submitted at all."""
    app = make_app(tmp_path)
    with frozen_nodes(flq):
        required = by_dsn(flq).start("run", app, "--nodes", "2", "--name", "refused")
        process = flq.start("run", app, "--stream", "--name", "patient")
        assert process.stdout is not None
        waits = next(line for line in process.stdout if "waiting for nodes" in line)
        assert waits == "flq.app: waiting for nodes: 0 of 2 nodes are online; giving up in 3600 s\n"
        waiting = flq.json("show", "patient")["waiting"]
        assert waiting == "no node that it may use is online; 4 are known"
        told = seen(*ended(required), code=1)
        assert told.message == "2 nodes are required, 0 are online"
        assert told.hint == "flq nodes lists them; host more: flq supernode --name NAME --nodes N"
    code, out, err = ended(process)
    assert code == 0, out + err
    assert [run["name"] for run in flq.json("ls")] == ["patient"]


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def test_fewer_nodes_than_the_command_asks_for(flq: Flq, tmp_path: Path):
    here, app = by_dsn(flq), make_app(tmp_path)
    asked = {
        "9 nodes are required, 4 are online": ["--nodes", "9"],
        "2 nodes are required, 1 of --on node-3 are online": ["--nodes", "2", "--on", "node-3"],
    }
    before = flq.json("ls")
    processes = {message: here.start("run", app, *options) for message, options in asked.items()}
    assert as_json(here, "run", app, "--nodes", "5", code=1)["code"] == "nodes_missing"
    for message, process in processes.items():
        assert seen(*ended(process), code=1).message == message
    assert flq.json("ls") == before


def test_fewer_nodes_than_the_strategy_needs(flq: Flq, tmp_path: Path):
    server = SERVER.replace("num_rounds=rounds", "num_rounds=rounds, timeout=1.5")
    failed = failed_run(flq, make_app(tmp_path, server=server), "short", "--run-config", "nodes=9")
    assert re.fullmatch(
        r"ServerApp raised StrategyError: 4 of 9 nodes are online \(node-1, node-2, node-3, node-4\) after \d s",
        failed.reason,
    )
    assert "waiting for nodes: 4 of 9 nodes are online" in failed.out
    assert "hint: start more SuperNodes (flq up --nodes N), or lower min_available_nodes" in failed.err


# a second one


def test_a_second_up(flq: Flq):
    pid = flq.json("status")["pid"]
    told = mistake(flq, "up", code=1)
    assert told.message == f"the federation below {flq.home} is already running (supervisor pid {pid})"
    assert told.hint == "`flq status` shows it, `flq down` stops it"
    assert as_json(flq, "up", code=1)["code"] == "federation_running"
    assert flq.json("status")["pid"] == pid


def test_two_ups_at_once(cold: Flq):
    results = [ended(process) for process in [cold.start("up"), cold.start("up")]]
    assert sorted(code for code, _, _ in results) == [0, 1]
    (late,) = [result for result in results if result[0] == 1]
    assert "already running" in seen(*late, code=1).message
    assert cold.json("status")["state"] == "up"


# addresses


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_the_port_of_the_monitor_is_taken(flq: Flq):
    with taken_port() as port:
        told = mistake(flq, "monitor", "--port", str(port), code=1)
    assert told.message == f"Celery Flower cannot listen on 127.0.0.1 port {port}: Address already in use"
    assert told.hint == "choose another one: flq monitor --port N, or --address"
    assert "http://" not in told.err
    told = mistake(flq, "monitor", "--address", "192.0.2.1", code=1)
    assert told.message == "Celery Flower cannot listen on 192.0.2.1 port 5555: Cannot assign requested address"


def test_the_port_of_postgres_is_taken(prepared: Flq):
    with taken_port() as port:
        (prepared.home / "config.toml").write_text(
            f"[embedded.postgres]\nlisten_addresses = '127.0.0.1'\nport = {port}\n"
        )
        told = mistake(prepared, "up", code=1)
    assert "postgres ended with exit code 1" in told.message
    assert 'could not bind IPv4 address "127.0.0.1": Address already in use' in told.message
    assert told.hint == f"its log is {prepared.home}/log/postgres.log"
    assert not prepared.processes()
    prepared("up")  # with the port free again


@only_root
def test_the_place_of_the_sockets_is_somebody_else_s():
    """Below a home with a long path the sockets are in the temp folder, where anybody may have been first."""
    with temporary_home() as home:
        long = Flq(home / ("deep " * 20).strip())
        place = layout.locate(long.home).run
        place.mkdir()
        try:
            os.chown(place, pwd.getpwnam("nobody").pw_uid, -1)
            told = mistake(long, "up", code=1)
            assert told.message == f"{place} belongs to somebody else"
            assert told.hint == "remove it, or set FLQ_HOME to a shorter path"
            assert not long.processes()
            place.rmdir()
            long("up")
            long("down")
        finally:
            shutil.rmtree(place, ignore_errors=True)
