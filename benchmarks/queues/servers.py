"""The servers of this benchmark: PostgreSQL and Valkey of the embedded federation, without its other processes.

Each side has a database of its own on the one PostgreSQL. `python -m benchmarks.queues.servers --home HOME --nodes 0`
supervises them.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from benchmarks import processes, workplace
from benchmarks.failure import BenchmarkError
from benchmarks.queues.crew import Crew
from flq import settings
from flq.link import schema
from flq.local import federation, postgres, supervisor, valkey
from flq.local.layout import Layout
from flq.local.process import ChildSpec, python, python_environment
from flq.local.state import Addresses

PATIENCE = 60.0
PROCESSES = 4
"""How many worker processes each side has."""

SETTINGS: Final = {
    **{name: value for name, value in postgres.SETTINGS.items() if "socket" not in name and "listen" not in name},
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
}
"""What the server is set to; the rest are PostgreSQL's defaults. It is asked before anything is measured."""

OURS: Final = "flq"


def plan(layout: Layout, _nodes: int) -> Sequence[ChildSpec]:
    """PostgreSQL and Valkey, without the processes of flq."""
    embedded = settings.embedded(layout.home)
    return [*postgres.specs(layout, embedded), valkey.spec(layout, embedded)]


class Servers:
    """The servers, and the crews of all sides, up within a `with` block. A crew starts when it is first asked for."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._crews: dict[str, Crew] = {}
        self._folder = Path()
        self._addresses: Addresses | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._folder = stack.enter_context(workplace.folder("queue"))
            self._addresses = self._start(stack)
            self._insist_on_settings()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._crews.clear()
        self._stack.close()

    def crew(self, side: str) -> Crew:
        """The workers of a side, with what it needs in the database; they stay until the end."""
        if side not in self._crews:
            self._create(side)
            interpreter = sys.executable if side == OURS else str(workplace.PEERS / "bin" / "python")
            crew = Crew(
                [interpreter, "-m", f"benchmarks.queues.{side}_worker"],
                python_environment({"QUEUE_DSN": self.dsn(side), "QUEUE_BROKER": f"{self._up.broker}?virtual_host=3"}),
                size=PROCESSES,
                logs=self._folder,
            )
            self._crews[side] = self._stack.enter_context(crew)
            if side != OURS:
                crew.first("install")
        return self._crews[side]

    def dsn(self, side: str) -> str:
        """A side's database."""
        return make_conninfo(self._up.dsn, dbname=_database(side))

    def settle(self, side: str) -> None:
        """Pay for what was written, and let the planner know of it, before something is measured."""
        with psycopg.connect(self.dsn(side), autocommit=True) as connection:
            connection.execute("VACUUM (ANALYZE)")
            connection.execute("CHECKPOINT")

    @property
    def _admin(self) -> str:
        return make_conninfo(self._up.dsn, dbname="postgres")

    @property
    def _up(self) -> Addresses:
        assert self._addresses is not None, "the servers are up within the block only"
        return self._addresses

    def _start(self, stack: ExitStack) -> Addresses:
        home = self._folder / "home"
        home.mkdir()
        command = python("-m", "benchmarks.queues.servers", "--home", str(home), "--nodes", "0")
        with (self._folder / "servers.log").open("wb") as log:
            started = subprocess.Popen(command, env=python_environment({}), stdout=log, stderr=log)
        stack.callback(_end, started)
        processes.until(
            lambda: federation.addresses(home) or started.poll() is not None, "the servers", patience=PATIENCE
        )
        found = federation.addresses(home)
        if found is None:
            raise BenchmarkError(f"the servers do not start:\n{(self._folder / 'servers.log').read_text()}")
        return found

    def _insist_on_settings(self) -> None:
        with psycopg.connect(self._admin) as connection:
            for name, value in SETTINGS.items():
                row = connection.execute("SELECT current_setting(%s)", [name]).fetchone()
                if row != (value,):
                    raise BenchmarkError(f"PostgreSQL has {name} = {row}, not {value}")

    def _create(self, side: str) -> None:
        with psycopg.connect(self._admin, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(_database(side))))
        if side == OURS:
            schema.upgrade(self.dsn(side))


def _database(side: str) -> str:
    return f"queue_{side}"


def _end(started: subprocess.Popen[bytes]) -> None:
    started.send_signal(signal.SIGTERM)
    try:
        started.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        started.kill()
        started.wait()


if __name__ == "__main__":
    sys.exit(supervisor.main(plan_for=plan))
