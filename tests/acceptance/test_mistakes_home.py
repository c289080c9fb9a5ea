"""Homes that cannot be used."""

from __future__ import annotations

import os
import pwd
import subprocess
import sysconfig
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.flq_command import Flq, open_python
from tests.acceptance.make_app import make_app
from tests.acceptance.mistakes import mistake
from tests.integration.local_home import temporary_home

pytestmark = pytest.mark.acceptance

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts file systems and gives files away")


def test_a_home_that_is_a_file(cold: Flq, tmp_path: Path):
    cold.home.write_text("")
    for command in (["up"], ["run", make_app(tmp_path)]):
        told = mistake(cold, *command, code=1)
        assert told.message == f"{cold.home} cannot be created: a file has that name"
        assert told.hint == "set FLQ_HOME to a folder that you may write to"
    below = replace(cold, home=cold.home / "below")
    assert mistake(below, "up", code=1).message == f"{below.home} cannot be created: Not a directory"
    assert mistake(below, "ls", code=5).hint == "start one: flq up"


@only_root
def test_a_home_on_a_disk_that_cannot_be_written_to(cold: Flq):
    cold.home.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,ro", "none", cold.home], check=True)
    try:
        assert mistake(cold, "up", code=1).message == f"{cold.home} cannot be written to"
        below = replace(cold, home=cold.home / "below")
        told = mistake(below, "up", code=1)
        assert told.message == f"{below.home} cannot be created: Read-only file system"
        assert told.hint == "set FLQ_HOME to a folder that you may write to"
    finally:
        subprocess.run(["umount", cold.home], check=True)


@only_root
def test_a_home_of_another_user(tmp_path: Path):
    """A plain user whose FLQ_HOME belongs to root."""
    with temporary_home(mode=0o755) as home:
        home.mkdir(mode=0o755)
        flq = Flq(home, {"HOME": "/", "PYTHONPATH": sysconfig.get_path("purelib")}, python=open_python())
        nobody = pwd.getpwnam("nobody")
        options: dict[str, Any] = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": [], "cwd": "/"}
        told = mistake(flq, "up", code=1, **options)
        assert told.message == f"{home} cannot be written to"
        assert told.hint == "set FLQ_HOME to a folder that you may write to"
        (home / "lock").touch(mode=0o600)
        told = mistake(flq, "ls", code=1, **options)
        assert told.message == f"{home}/lock belongs to another user"
        assert told.hint == "set FLQ_HOME to a folder of your own"
        assert [path.name for path in home.iterdir()] == ["lock"]


def test_data_of_another_major_version(cold: Flq, tmp_path: Path):
    data = cold.home / "pg"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("16\n")
    for command in (["up"], ["run", make_app(tmp_path)], ["status"]):
        told = mistake(cold, *command, code=1)
        assert told.message.startswith(f"the data in {data} is of PostgreSQL 16, the programs in ")
        assert told.hint.startswith("set FLQ_PG_BIN to the programs of 16; to move to ")
    assert [path.name for path in data.iterdir()] == ["PG_VERSION"]
    assert not cold.processes()
