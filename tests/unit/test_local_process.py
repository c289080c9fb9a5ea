"""A child between two starts, and what the environment says to one."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from flq import settings
from flq.errors import UsageError
from flq.local import federation, process
from flq.local.process import Child, ChildSpec


@pytest.fixture
def child() -> Child:
    return Child(ChildSpec(name="some", argv=("true",), log=Path("some.log"), env={}))


def test_delays_double_up_to_a_bound_and_the_child_is_called_failed(child: Child):
    delays, states = [], []
    for _ in range(10):
        child.retry()
        delays.append(round(child.due - time.monotonic(), 1))
        states.append(child.status().state)
    assert delays == [0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert states == ["restarting"] * 4 + ["failed"] * 6
    child.work()
    assert child.status().state == "running"


def test_a_child_that_has_worked_for_a_while_starts_with_a_clean_slate(child: Child, monkeypatch: pytest.MonkeyPatch):
    for _ in range(6):
        child.retry()
    child.work()
    later = time.monotonic() + process.STABLE + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    child.retry()
    assert (child.failures, child.restarts) == (1, 7)


def test_a_replaced_child_starts_at_once_and_has_not_failed(child: Child):
    child.replacing = True
    child.retry()
    assert child.due <= time.monotonic()
    assert (child.failures, child.restarts, child.replacing) == (0, 0, False)


def test_a_birth_tells_a_process_from_others():
    assert process.birth(os.getpid()) == process.birth(os.getpid()) != process.birth(1)
    assert process.birth(2**30) == ""


def test_announcing_writes_once_closes_and_leaves_nothing_for_children():
    reader, writer = os.pipe()
    environ = {"FLQ_READY_FD": str(writer)}
    settings.announce_ready(environ)
    settings.announce_ready(environ)
    assert os.read(reader, 100) == b"ready\n"
    assert os.read(reader, 100) == b""
    assert environ == {}
    os.close(reader)


def test_announcing_to_nobody_is_no_error():
    settings.announce_ready({})
    reader, writer = os.pipe()
    os.close(reader)
    settings.announce_ready({"FLQ_READY_FD": str(writer)})
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.close(writer)


def test_a_child_environment_has_the_changes():
    assert settings.child_environment({"B": "2", "C": None}, environ={"A": "1", "C": "3"}) == {"A": "1", "B": "2"}


def test_a_python_child_finds_flq(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    paths = process.python_environment({})["PYTHONPATH"].split(os.pathsep)
    assert paths == [str(Path(process.__file__).parents[2]), "/elsewhere"]


def test_the_embedded_servers_are_set_up_by_environment_and_configuration(tmp_path: Path):
    assert settings.embedded(tmp_path, environ={}) == settings.Embedded()
    (tmp_path / "config.toml").write_text("[embedded.postgres]\nwork_mem = '8MB'\n")
    found = settings.embedded(tmp_path, environ={"FLQ_PG_BIN": "/pg/bin", "FLQ_VALKEY_BIN": "/v/valkey-server"})
    assert found == settings.Embedded(Path("/pg/bin"), Path("/v/valkey-server"), {"work_mem": "8MB"})
    (tmp_path / "config.toml").write_text("[embedded")
    with pytest.raises(UsageError):
        settings.embedded(tmp_path, environ={})


def test_ctrl_c_counts_only_once_a_process_that_is_being_started_is_known():
    done: list[str] = []

    def start() -> None:
        with federation._interrupt_afterwards():
            signal.raise_signal(signal.SIGINT)
            done.append("started")

    with pytest.raises(KeyboardInterrupt):
        start()
    assert done == ["started"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
