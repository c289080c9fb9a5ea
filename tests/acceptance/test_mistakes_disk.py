"""A disk that is full: said so, nothing half-written, and what was under way goes on once there is room."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from flq.local import federation
from tests.acceptance.flq_command import PATIENCE, Flq
from tests.acceptance.make_app import CLIENT, SERVER, make_app
from tests.acceptance.mistakes import as_json, mistake
from tests.integration.local_home import pid_of, temporary_home, wait_until_restarted
from tests.waiting import eventually

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small file system"),
]


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own, of `size`."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@dataclass(frozen=True)
class Disk:
    """A small disk with a federation on it."""

    folder: Path
    flq: Flq
    dsn: str

    @contextmanager
    def full(self) -> Iterator[None]:
        """While this lasts there is no room."""
        filler = self.folder / "filler"
        try:
            for block in (1 << 16, 1):
                fill(filler, block)
            yield
        finally:
            filler.unlink()

    def failures(self) -> int:
        """How many transactions have failed; no log can be asked, since it is on the same disk."""
        with psycopg.connect(self.dsn) as connection:
            row = connection.execute("SELECT xact_rollback FROM pg_stat_database WHERE datname = 'flq'").fetchone()
        assert row is not None
        return int(row[0])

    def fill_journal(self) -> None:
        """Make PostgreSQL need more room for its journal."""
        with suppress(psycopg.OperationalError), psycopg.connect(self.dsn, autocommit=True) as connection:
            for _ in range(100):
                connection.execute("SELECT pg_logical_emit_message(false, 'test', repeat('x', 4000000))")


def fill(path: Path, block: int) -> None:
    """Write until there is no room for one more block."""
    with path.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(block))
        except OSError as exc:
            assert exc.errno == errno.ENOSPC  # noqa: PT017 - this is how the loop ends


@pytest.fixture(scope="module")
def disk() -> Iterator[Disk]:
    with temporary_home() as outer, small_disk(outer, "160m") as folder:
        flq = Flq(folder / "home")
        try:
            flq("up", "--nodes", "2")
            found = federation.addresses(flq.home)
            assert found is not None
            yield Disk(folder, flq, found.dsn)
        finally:
            flq("down")


def test_a_disk_without_room_for_a_federation(tmp_path: Path):
    with temporary_home() as outer, small_disk(outer, "4m") as folder:
        flq = Flq(folder / "home")
        for command in (["up"], ["run", make_app(tmp_path)]):
            told = mistake(flq, *command, code=1)
            free = re.escape(f"the disk of {flq.home} is full: ") + r"\d MB are free"
            assert re.fullmatch(f"{free}, and a federation needs 96 MB to start", told.message)
            assert told.hint == "make room, or set FLQ_HOME to a folder on another disk"
        assert as_json(flq, "up", code=1)["code"] == "disk_full"
        assert list(flq.home.iterdir()) == []


LARGE = SERVER.replace("np.zeros(4)", "np.arange(7000.0)")
"""Its model stands in the tables of PostgreSQL, and in no file of a node."""


def gated(gate: Path) -> str:
    wait = f"import os, time\n        while not os.path.exists({str(gate)!r}): time.sleep(0.05)"
    return CLIENT.replace('print("training', f'{wait}\n        print("training')


def test_a_run_under_way_waits_for_room(disk: Disk, tmp_path: Path):
    flq, gate = disk.flq, tmp_path / "gate"
    app = make_app(tmp_path / "app", server=LARGE, client=gated(gate))
    process = flq.start("run", app, "--wait", "--name", "waits", "--run-config", "num-rounds=20")
    leased = "select count(*) as n from flq.tasks where run = 'waits' and status = 'leased'"
    eventually(lambda: flq.sql(leased)[0]["n"] == 2, what="clients at work")
    before = disk.failures()
    with disk.full():
        gate.touch()
        eventually(lambda: disk.failures() > before, what="a statement without room")
        assert flq.json("show", "waits")["run"]["status"] == "running"
        (app / "tiny" / "data.json").write_bytes(os.urandom(1 << 20))
        told = mistake(flq, "run", app, "--name", "late", code=5)
        assert told.message.startswith("PostgreSQL has no room: could not extend file")
        assert told.message.endswith("No space left on device")
        assert told.hint == f"the disk of {flq.home} is full (0 MB are free): make room there"
        assert as_json(flq, "run", app, code=5)["code"] == "database_full"
        assert mistake(flq, "status", code=1).message == told.hint
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out + err
    (run,) = flq.json("ls")  # nothing of the one that was refused
    assert (run["name"], run["rounds_done"], run["attempt"]) == ("waits", 20, 1)


def test_a_postgres_that_dies_of_it_comes_back(disk: Disk, tmp_path: Path):
    """Without room for its journal PostgreSQL ends itself; the runs go on when it is back."""
    flq, gate = disk.flq, tmp_path / "gate"
    app = make_app(tmp_path / "app", server=LARGE, client=gated(gate))
    process = flq.start("run", app, "--wait", "--name", "survives")
    leased = "select count(*) as n from flq.tasks where run = 'survives' and status = 'leased'"
    eventually(lambda: flq.sql(leased)[0]["n"] == 2, what="clients at work")
    former = pid_of(flq.home, "postgres")
    with disk.full():
        disk.fill_journal()
        eventually(lambda: not Path("/proc", str(former)).exists(), what="the end of PostgreSQL")
        told = mistake(flq, "ls", code=5)
        assert told.message.startswith("PostgreSQL cannot be reached: ")
        assert told.hint == f"the disk of {flq.home} is full (0 MB are free): make room there"
        gate.touch()
    wait_until_restarted(flq.home, "postgres", former=former)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out + err
    assert {run["name"]: run["outcome"] for run in flq.json("ls")}["survives"] == "completed"


STORES = """
    import os
    from flq.apps import ServerApp
    app = ServerApp()

    @app.main()
    def main(grid, context):
        grid.save_artifact("model.bin", os.urandom(4 << 20))
"""


def test_a_pull_to_a_disk_without_room(disk: Disk, tmp_path: Path):
    flq = disk.flq
    flq("run", make_app(tmp_path / "app", server=STORES), "--wait", "--name", "stored")
    with small_disk(tmp_path / "out", "1m") as out:
        told = mistake(flq, "pull", "stored", "-o", out / "models", code=1)
        assert told.message == f"{out}/models/model.bin (4.0 MB) cannot be written: No space left on device"
        assert told.hint == "make room there, or choose another folder with -o"
        assert as_json(flq, "pull", "stored", "-o", out, code=1)["code"] == "disk_full"
        assert list(out.iterdir()) == []
