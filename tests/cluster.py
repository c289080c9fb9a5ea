"""Postgres and Valkey for tests, on copies of one cluster with flq's schema that is made once."""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flq.local import federation, layout
from flq.local.process import python, python_environment
from flq.local.state import Addresses
from tests.waiting import eventually

VARIABLE = "TESTS_CLUSTER"
"""Names the folder in which the processes that share the tests keep the cluster."""


@contextmanager
def one_cluster() -> Iterator[None]:
    """Let this process and those that it starts share a cluster, until the end of the block."""
    if VARIABLE in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="flq-cluster-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL runs as another user if the tests run as root
        os.environ[VARIABLE] = folder
        try:
            yield
        finally:
            del os.environ[VARIABLE]


def prepare(home: Path) -> None:
    """Make the folder `home`, with a copy of the cluster: as if a federation had been up there that did nothing."""
    found = layout.locate(home)
    original = _original(Path(os.environ[VARIABLE]))
    layout.make_home(found)
    _copy(original, found.pg_data)


@contextmanager
def running(home: Path) -> Iterator[Addresses]:
    """Postgres and Valkey below `home`, until the end of the block."""
    with (home.parent / "servers.log").open("w+") as log:
        command = python("-m", "tests.servers", "--home", str(home), "--nodes", "0")
        supervisor = subprocess.Popen(command, env=python_environment({}), stdout=log, stderr=log)
        try:
            eventually(
                lambda: federation.addresses(home) or supervisor.poll() is not None, timeout=60, what="the test servers"
            )
            addresses = federation.addresses(home)
            assert addresses is not None, Path(log.name).read_text(encoding="utf-8")
            yield addresses
        finally:
            supervisor.terminate()
            supervisor.wait(60)


@contextmanager
def servers_of_a_copy(config: str = "") -> Iterator[tuple[Path, Addresses]]:
    """The same on a copy of the cluster, with a home and a `config.toml` of its own."""
    with tempfile.TemporaryDirectory(prefix="flq-servers-") as folder:
        Path(folder).chmod(0o755)
        home = Path(folder) / "home"
        prepare(home)
        (home / "config.toml").write_text(config, encoding="utf-8")
        with running(home) as addresses:
            yield home, addresses


def _original(folder: Path) -> Path:
    """The cluster, made by the first who asks."""
    found = folder / "pg"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not found.exists():
            made = layout.locate(folder / "home")
            layout.make_home(made)
            with running(made.home):
                pass
            made.pg_data.rename(found)
    return found


def _copy(folder: Path, to: Path) -> None:
    subprocess.run(["cp", "-a", folder, to], check=True)  # which keeps owners, as nothing of Python's does
