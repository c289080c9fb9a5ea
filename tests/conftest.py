"""Fixtures: a real Postgres and a real Valkey for the session, a migrated database of its own for each test."""

from __future__ import annotations

import itertools
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from flq.link import schema
from flq.link.database import Database
from flq.local import federation
from flq.local.process import python, python_environment
from flq.local.state import Addresses
from tests.scratch import in_memory
from tests.waiting import eventually

NUMBERS = itertools.count()

# A shell starts what runs in its background with Ctrl-C ignored, and so would be all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Of the processes that share the tests, the first one says where temporary files go, and removes them."""
    scratch = ExitStack()
    scratch.enter_context(in_memory())
    config.add_cleanup(scratch.close)


@pytest.fixture(scope="session")
def servers() -> Iterator[Addresses]:
    """Postgres and Valkey of a session's own, without fsync: no test here pulls the plug."""
    outer = Path(tempfile.mkdtemp(prefix="flq-servers-"))
    outer.chmod(0o755)
    home = outer / "home"
    home.mkdir()
    (home / "config.toml").write_text("[embedded.postgres]\nfsync = false\nmax_connections = 200\n")
    command = python("-m", "tests.servers", "--home", str(home), "--nodes", "0")
    with (outer / "log").open("w") as log:
        supervisor = subprocess.Popen(command, env=python_environment({}), stdout=log, stderr=log)
    try:
        eventually(
            lambda: federation.addresses(home) or supervisor.poll() is not None, timeout=60, what="the test servers"
        )
        addresses = federation.addresses(home)
        assert addresses is not None, (outer / "log").read_text()
        yield addresses
    finally:
        supervisor.terminate()
        supervisor.wait(60)
        shutil.rmtree(outer)


@pytest.fixture(scope="session")
def admin(servers: Addresses) -> Callable[[str], None]:
    """Runs a statement on the cluster."""

    def execute(statement: str) -> None:
        with psycopg.connect(servers.dsn, dbname="postgres", autocommit=True) as connection:
            connection.execute(statement)

    return execute


@pytest.fixture(scope="session")
def template(servers: Addresses, admin: Callable[[str], None]) -> str:
    """The name of a database that has been migrated once, to be cloned."""
    admin("CREATE DATABASE flq_template")
    schema.upgrade(servers.dsn.replace("dbname=flq", "dbname=flq_template"))
    return "flq_template"


@pytest.fixture
def dsn(servers: Addresses, admin: Callable[[str], None], template: str) -> Iterator[str]:
    """A migrated database of the test's own."""
    name = f"flq_test_{next(NUMBERS)}"
    admin(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield servers.dsn.replace("dbname=flq", f"dbname={name}")
    admin(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def db(dsn: str) -> Iterator[Database]:
    """The test's database, opened."""
    database = Database(dsn, application="flq test")
    yield database
    database.close()


@pytest.fixture
def broker(servers: Addresses) -> str:
    """A broker of the test's own: another of Valkey's numbered databases."""
    return f"{servers.broker}?virtual_host={next(NUMBERS) % 15 + 1}"
