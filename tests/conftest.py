"""Fixtures: a real Postgres and a real Valkey for the session, a migrated database of its own for each test."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import psycopg
import pytest

from flq.link.database import Database
from flq.local.state import Addresses
from tests.cluster import one_cluster, servers_of_a_copy
from tests.scratch import in_memory

NUMBERS = itertools.count()

# Threads of linear algebra wait by spinning, and would take the processor from all other processes of the tests.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# A thousand processes import flq: each would compile it where the environment forbids byte code, as in many containers.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell starts what runs in its background with Ctrl-C ignored, and so would be all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Of the processes that share the tests, the first one says where temporary files go, and removes them."""
    scratch = ExitStack()
    scratch.enter_context(in_memory())
    scratch.enter_context(one_cluster())
    config.add_cleanup(scratch.close)


@pytest.fixture(scope="session")
def servers() -> Iterator[Addresses]:
    """Postgres and Valkey of a session's own, without fsync: no test here pulls the plug."""
    with servers_of_a_copy("[embedded.postgres]\nfsync = false\nmax_connections = 200\n") as (_, addresses):
        yield addresses


@pytest.fixture(scope="session")
def admin(servers: Addresses) -> Callable[[str], None]:
    """Runs a statement on the cluster."""

    def execute(statement: str) -> None:
        with psycopg.connect(servers.dsn, dbname="postgres", autocommit=True) as connection:
            connection.execute(statement)

    return execute


@pytest.fixture(scope="session")
def template(servers: Addresses, admin: Callable[[str], None]) -> str:
    """The name of a database with flq's schema that nobody is connected to, to be cloned."""
    admin("CREATE DATABASE flq_template TEMPLATE flq")
    psycopg.connect(servers.dsn, dbname="flq_template").close()  # the first session leaves a cache of the catalog there
    return "flq_template"


@pytest.fixture
def dsn(servers: Addresses, admin: Callable[[str], None], template: str) -> Iterator[str]:
    """A migrated database of the test's own."""
    name = f"flq_test_{next(NUMBERS)}"
    admin(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")  # half the work of copying through the log
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
