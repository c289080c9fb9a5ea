"""The embedded federation's files: layout, lock and state."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from flq.errors import DiskFull, LocalError
from flq.local import layout, room, state
from flq.local.state import Addresses, ProcessStatus, Remain, Snapshot

SNAPSHOT = Snapshot(
    pid=4711,
    state="up",
    nodes=3,
    addresses=Addresses(dsn="host=/run/pg user=flq dbname=flq", broker="redis+socket:///run/valkey.sock"),
    processes=(
        ProcessStatus(
            name="postgres",
            pid=4712,
            state="running",
            restarts=1,
            since=datetime(2026, 11, 24, 4, 5, tzinfo=UTC),
            log=Path("/home/log/postgres.log"),
        ),
    ),
    remains=(Remain(name="postgres", pid=4712, birth="boot 99", signal=2),),
)


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


def test_sockets_are_below_a_home_with_a_short_path():
    where = layout.locate(Path("/srv/flq"))
    assert where.pg_run == Path("/srv/flq/run/pg")
    assert where.addresses.dsn == "host=/srv/flq/run/pg user=flq dbname=flq"
    assert where.addresses.broker == "redis+socket:///srv/flq/run/valkey.sock"


def test_sockets_of_a_home_with_a_long_path_are_in_a_folder_of_its_own(short: Path):
    first, second = (layout.locate(Path("/srv") / ("long" * 20) / name) for name in ("first", "second"))
    assert first.run.parent == second.run.parent == short
    assert first.run != second.run
    assert first == layout.locate(first.home)


def test_paths_with_special_characters_are_quoted():
    where = layout.locate(Path("/srv/it's a \\home"))
    assert where.addresses.dsn == "host='/srv/it\\'s a \\\\home/run/pg' user=flq dbname=flq"
    assert where.addresses.broker == "redis+socket:///srv/it%27s%20a%20%5Chome/run/valkey.sock"


def test_a_home_is_made_with_its_parents(tmp_path: Path):
    where = layout.locate(tmp_path / "a" / "b")
    layout.make_home(where)
    layout.make_home(where)
    assert where.home.is_dir()


def test_the_port_of_the_configuration_stands_in_the_address(tmp_path: Path):
    where = layout.locate(tmp_path)
    assert " port=" not in where.addresses.dsn
    assert replace(where, port=6543).addresses.dsn == where.addresses.dsn.replace(" user", " port=6543 user")


def test_a_disk_that_is_too_full_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=room.FRESH_BYTES - 1))
    with pytest.raises(DiskFull, match="95 MB are free, and a federation needs 96 MB"):
        room.insist(tmp_path, fresh=True)
    room.insist(tmp_path, fresh=False)
    assert room.shortage(tmp_path) is None
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=room.LOW_BYTES - 1))
    with pytest.raises(DiskFull):
        room.insist(tmp_path, fresh=False)
    assert "17 MB are free" in str(room.shortage(tmp_path))


def test_a_home_that_is_a_file_is_refused(tmp_path: Path):
    (tmp_path / "home").write_text("")
    with pytest.raises(LocalError, match="cannot be created"):
        layout.make_home(layout.locate(tmp_path / "home"))


@pytest.mark.parametrize("prepare", [lambda path: path.symlink_to("/"), lambda path: path.mkdir() or path.chmod(0o777)])
def test_a_folder_that_somebody_laid_out_for_us_is_refused(short: Path, prepare: Callable[[Path], None]):
    where = layout.locate(short / ("long" * 20))
    where.home.mkdir()
    prepare(where.run)
    with pytest.raises(LocalError, match="belongs to somebody else"):
        layout.make_folders(where)


def test_a_large_log_is_put_aside(tmp_path: Path):
    log = tmp_path / "some.log"
    layout.rotate(log)
    log.write_text("small")
    layout.rotate(log)
    assert log.exists()
    os.truncate(log, layout.LOG_BYTES + 1)
    layout.rotate(log)
    assert [path.name for path in tmp_path.iterdir()] == ["some.log.1"]


def test_the_state_file_gives_back_what_was_written_and_is_for_its_owner(tmp_path: Path):
    path = tmp_path / "federation.json"
    state.write(path, SNAPSHOT)
    state.write(path, SNAPSHOT)
    assert state.read(path) == SNAPSHOT
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["federation.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"pid": 1}', b'{"addresses": 3}', b"\xff"])
def test_a_state_file_that_cannot_be_read_is_none(tmp_path: Path, content: bytes):
    path = tmp_path / "federation.json"
    path.write_bytes(content)
    assert state.read(path) is None


def test_the_lock_names_its_holder_and_is_free_when_the_holder_is_killed(tmp_path: Path):
    lock = tmp_path / "lock"
    assert state.holder(lock) is None
    code = f"""
import time
from pathlib import Path
from flq.local import state
state.acquire(Path({str(lock)!r}))
print("held", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert state.holder(lock) == other.pid
        assert state.acquire(lock) is None
        other.kill()
    assert state.holder(lock) is None
    descriptor = state.acquire(lock)
    assert descriptor is not None
    assert state.holder(lock) == os.getpid()
    os.close(descriptor)
