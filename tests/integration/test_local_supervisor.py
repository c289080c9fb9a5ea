"""The supervisor with processes that stand for others: no database, hence fast."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flq.errors import FederationRunning, LocalError, ServerFailed, UsageError
from flq.local import federation, layout, state
from flq.local.process import python_environment
from tests.integration.local_home import (
    kill,
    kill_supervisor,
    pid_of,
    processes,
    stand_in,
    temporary_home,
    wait_until_restarted,
)
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]

Planned = Callable[[str], None]


@pytest.fixture
def home() -> Iterator[Path]:
    with temporary_home() as home:
        yield home


@pytest.fixture(autouse=True)
def planned(monkeypatch: pytest.MonkeyPatch) -> Planned:
    def choose(plan: str) -> None:
        monkeypatch.setattr(federation, "SUPERVISOR", stand_in(plan))

    choose("simple")
    return choose


def in_another_process(home: Path, call: str) -> subprocess.Popen[str]:
    """Run `call`, an expression on `federation` and `home`, with the simple plan; it prints its value or error."""
    code = f"""
from pathlib import Path
from flq.errors import FlqError
from flq.local import federation
from tests.integration.local_home import stand_in
federation.SUPERVISOR = stand_in("simple")
home = Path({str(home)!r})
try:
    print({call})
except FlqError as exc:
    print(type(exc).__name__)
"""
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def arguments_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def output_of(process: subprocess.Popen[str]) -> str:
    with process:
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    return output.strip()


def test_a_home_that_was_never_used_is_down(home: Path):
    found = federation.status(home)
    assert (found.running, found.state, found.pid, found.addresses) == (False, "down", None, None)
    assert federation.addresses(home) is None
    assert federation.down(home) is False


def test_up_tells_each_step_and_ends_when_all_are_ready(home: Path):
    told: list[str] = []
    addresses = federation.up(home, nodes=3, progress=told.append)
    found = federation.status(home)
    assert found.state == "up"
    assert found.nodes == 3
    assert found.addresses == addresses == federation.addresses(home)
    assert [(process.name, process.state) for process in found.processes] == [
        ("base", "running"),
        ("middle", "running"),
        ("supernode", "running"),
    ]
    assert [line for line in told if line.endswith("running")] == [
        "base: running",
        "middle: running",
        "supernode: running",
    ]
    assert int((home / "lock").read_text()) == found.pid


def test_down_stops_in_reverse_order_and_leaves_nothing(home: Path):
    federation.up(home)
    told: list[str] = []
    assert federation.down(home, progress=told.append) is True
    assert processes(home) == []
    assert told == ["supernode: stopped", "middle: stopped", "base: stopped"]
    assert federation.status(home).state == "down"
    assert federation.down(home) is False


def test_state_and_logs_are_for_their_owner_only(home: Path):
    federation.up(home)
    files = [home / "federation.json", home / "lock", home / "supervisor.log", layout.locate(home).control]
    assert [path.stat().st_mode & 0o777 for path in files] == [0o600] * 4
    assert (home / "log").stat().st_mode & 0o777 == 0o700


def test_a_second_up_is_refused_and_names_the_way_out(home: Path):
    federation.up(home)
    with pytest.raises(FederationRunning) as refused:
        federation.up(home)
    assert "flq down" in (refused.value.hint or "")


def test_of_concurrent_ups_exactly_one_wins(home: Path):
    ups = [in_another_process(home, "federation.up(home).broker[:5]") for _ in range(4)]
    assert sorted(output_of(up) for up in ups) == ["FederationRunning"] * 3 + ["redis"]
    assert federation.status(home).state == "up"


def test_of_concurrent_ensures_one_starts_and_all_have_the_federation(home: Path):
    callers = [in_another_process(home, "federation.ensure(home)[1]") for _ in range(4)]
    assert sorted(output_of(caller) for caller in callers) == ["False"] * 3 + ["True"]


def test_ensure_starts_uses_and_grows(home: Path):
    addresses, started = federation.ensure(home)
    assert (started, federation.status(home).nodes) == (True, 2)
    assert federation.ensure(home, nodes=2) == (addresses, False)
    before = pid_of(home, "supernode")
    assert federation.ensure(home, nodes=5) == (addresses, False)
    assert federation.status(home).nodes == 5
    assert pid_of(home, "supernode") != before
    assert federation.ensure(home, nodes=1) == (addresses, False)
    assert federation.status(home).nodes == 5


def test_growing_restarts_the_supernode_alone_and_is_no_failure(home: Path):
    federation.up(home)
    base, supernode = pid_of(home, "base"), pid_of(home, "supernode")
    federation.grow(home, nodes=7)
    found = federation.status(home)
    assert found.nodes == 7
    assert pid_of(home, "base") == base
    assert pid_of(home, "supernode") != supernode
    assert "7" in arguments_of(pid_of(home, "supernode"))
    assert [process.restarts for process in found.processes] == [0, 0, 0]


def test_growing_what_is_down_is_refused(home: Path):
    with pytest.raises(LocalError, match="not up"):
        federation.grow(home, nodes=3)


def test_requests_that_make_no_sense_are_passed_over(home: Path):
    federation.up(home)
    for request in (b"", b"\xff", b"[]", b'{"nodes": null}', b'{"nodes": -1}', json.dumps({"other": 1}).encode()):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.sendto(request, str(layout.locate(home).control))
    federation.grow(home, nodes=3)
    assert federation.status(home).nodes == 3


def test_a_federation_hosts_a_node_at_least(home: Path):
    with pytest.raises(UsageError):
        federation.up(home, nodes=0)


def test_a_killed_process_is_started_again(home: Path):
    federation.up(home)
    for name in ("base", "middle", "supernode", "base"):
        former = pid_of(home, name)
        kill(former)
        wait_until_restarted(home, name, former=former)
    assert {process.name: process.restarts for process in federation.status(home).processes} == {
        "base": 2,
        "middle": 1,
        "supernode": 1,
    }
    assert federation.status(home).state == "up"


def test_a_killed_supervisor_takes_its_processes_along_and_is_not_believed(home: Path):
    federation.up(home)
    assert len(processes(home)) == 4
    kill_supervisor(home)
    eventually(lambda: not processes(home), what="the end of all processes")
    found = federation.status(home)
    assert (found.running, found.state, found.addresses, found.processes) == (False, "down", None, ())
    federation.up(home)
    assert federation.status(home).state == "up"


def test_a_supervisor_whose_home_is_removed_ends_and_spares_the_next_one(home: Path):
    federation.up(home)
    former = processes(home)
    shutil.rmtree(home)
    assert federation.status(home).state == "down"
    federation.up(home)
    kill(next(pid for pid in former if pid != federation.status(home).pid and "-c" in arguments_of(pid)))
    eventually(lambda: not set(former) & set(processes(home)), what="the end of the former federation")
    found = federation.status(home)
    assert found.state == "up"
    assert layout.locate(home).control.exists()


def test_the_next_supervisor_waits_for_what_a_killed_one_left(home: Path, planned: Planned):
    planned("stubborn")
    federation.up(home)
    stubborn = pid_of(home, "base")
    kill_supervisor(home)
    waiting = in_another_process(home, "federation.up(home).broker[:5]")
    written = layout.locate(home).state
    eventually(lambda: federation.status(home).state == "starting", what="the next supervisor")
    left = state.read(written)
    assert left is not None
    assert [remain.pid for remain in left.remains] == [stubborn]
    kill(stubborn)
    assert output_of(waiting) == "redis"
    assert federation.status(home).state == "up"


def test_a_process_that_keeps_failing_ends_the_start_with_its_last_words(home: Path, planned: Planned):
    planned("broken")
    with pytest.raises(ServerFailed, match="flux ended with exit code 1: the flux is out of order") as failed:
        federation.up(home)
    assert "flux.log" in (failed.value.hint or "")
    assert processes(home) == []
    found = federation.status(home)
    assert (found.running, found.state) == (False, "failed")
    assert "out of order" in (found.error or "")
    planned("simple")
    federation.up(home)
    assert federation.status(home).error is None


def test_a_step_that_fails_ends_the_start_at_once(home: Path, planned: Planned):
    planned("broken-step")
    with pytest.raises(ServerFailed, match="out of order"):
        federation.up(home)
    assert (home / "log" / "flux.log").read_text().count("out of order") == 1


def test_a_process_that_does_not_become_ready_is_a_failed_one(home: Path, planned: Planned):
    planned("silent")
    with pytest.raises(ServerFailed, match="base ended with signal 9"):
        federation.up(home)
    assert processes(home) == []


def test_a_process_that_does_not_end_is_killed(home: Path, planned: Planned):
    planned("stubborn")
    federation.up(home)
    assert federation.down(home)
    assert processes(home) == []


def test_an_interrupted_up_leaves_nothing_running(home: Path):
    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        federation.up(home, progress=interrupt)
    eventually(lambda: not processes(home), what="the end of all processes")


def test_a_supervisor_that_cannot_start_says_where_its_log_is(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(federation, "SUPERVISOR", (sys.executable, "-c", "raise SystemExit(7)"))
    with pytest.raises(ServerFailed, match="ended with 7") as failed:
        federation.up(home)
    assert "supervisor.log" in (failed.value.hint or "")


def test_an_idle_supervisor_sleeps(home: Path):
    federation.up(home)
    supervisor = federation.status(home).pid

    def switches() -> str:
        text = Path(f"/proc/{supervisor}/status").read_text()
        return next(line for line in text.splitlines() if line.startswith("voluntary_ctxt_switches"))

    def sleeps() -> bool:
        before = switches()
        time.sleep(1.5)  # the one thing that cannot be waited for: that nothing happens
        return switches() == before

    eventually(sleeps, what="a supervisor that has nothing left to do")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_home_that_cannot_be_written_is_refused(home: Path):
    home.mkdir(mode=0o500)
    with pytest.raises(LocalError, match="cannot be written"):
        federation.up(home)


def test_sigterm_stops_the_supervisor_while_it_starts(home: Path):
    home.mkdir()
    up = subprocess.Popen([*stand_in("simple"), "--home", str(home), "--nodes", "1"], env=python_environment({}))
    eventually(lambda: federation.status(home).pid == up.pid, what="the lock")
    up.send_signal(signal.SIGTERM)
    assert up.wait(timeout=20) == 0
    assert processes(home) == []
