"""PostgreSQL or the broker is unreachable, refuses, is full, or is at another revision."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from flq.local import binaries, federation
from flq.local.state import Addresses
from flq.settings import Embedded
from tests.acceptance.flq_command import PATIENCE, Flq
from tests.acceptance.make_app import CLIENT, make_app
from tests.acceptance.mistakes import as_json, mistake
from tests.acceptance.test_federation import free_port
from tests.integration.local_home import kill, pid_of, temporary_home
from tests.waiting import eventually

pytestmark = pytest.mark.acceptance

PORT = free_port()


@pytest.fixture(scope="module")
def flq() -> Iterator[Flq]:
    """A federation whose PostgreSQL listens on a port, and has few connections."""
    with temporary_home(prepared=True) as home:
        (home / "config.toml").write_text(
            f"[embedded.postgres]\nlisten_addresses = '127.0.0.1'\nport = {PORT}\nmax_connections = 30\n"
        )
        program = home.parent / "valkey-server"
        broken = shlex.quote(f"{program}.broken")
        program.write_text(f'#!/bin/sh\nwhile [ -e {broken} ]; do sleep 0.05; done\nexec {_valkey()} "$@"\n')
        program.chmod(0o755)
        command = Flq(home, {"FLQ_VALKEY_BIN": str(program)})
        command("up", "--nodes", "2")
        yield command


def _valkey() -> str:
    return shlex.quote(str(binaries.valkey(Embedded())))


def addresses(flq: Flq) -> Addresses:
    found = federation.addresses(flq.home)
    assert found is not None
    return found


def elsewhere(flq: Flq, dsn: str) -> Flq:
    """The command, told of another PostgreSQL."""
    return replace(flq, variables={**flq.variables, "FLQ_DSN": dsn})


def on_port(rest: str) -> str:
    return f"host=127.0.0.1 port={PORT} {rest}"


def test_a_postgres_that_nobody_runs(flq: Flq, tmp_path: Path):
    nowhere = elsewhere(flq, f"host=127.0.0.1 port={free_port()} dbname=flq user=flq")
    for command in (["ls"], ["run", make_app(tmp_path)], ["status"], ["db", "upgrade"], ["supernode", "--name", "x"]):
        told = mistake(nowhere, *command, code=5)
        assert told.message.startswith("PostgreSQL cannot be reached: connection to server at")
        assert told.message.endswith("Connection refused")
        assert told.hint == "`flq status` shows the embedded federation; FLQ_DSN names another one"
    assert as_json(nowhere, "ls", code=5)["code"] == "database_unreachable"


def test_a_database_that_does_not_exist(flq: Flq):
    told = mistake(elsewhere(flq, addresses(flq).dsn.replace("dbname=flq", "dbname=flp")), "ls", code=5)
    assert told.message.endswith('database "flp" does not exist')
    assert told.hint == "create it (createdb, then flq db upgrade), or correct the dbname in FLQ_DSN"


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("dbname=flq user=flq password=wrongword", 'password authentication failed for user "flq"'),
        ("dbname=flq user=flq", "no password supplied"),
    ],
)
def test_a_password_that_is_wrong_or_missing(flq: Flq, rest: str, said: str):
    stranger = elsewhere(flq, on_port(rest))
    told = mistake(stranger, "ls", code=4)
    assert told.message.startswith("PostgreSQL does not let us in: ")
    assert told.message.endswith(said)
    assert told.hint == "FLQ_DSN names user and password; the password may stand in ~/.pgpass instead"
    assert "wrongword" not in told.err
    assert as_json(stranger, "nodes", code=4)["code"] == "database_refused"


def test_a_user_without_rights(flq: Flq):
    with psycopg.connect(addresses(flq).dsn, autocommit=True) as connection:
        connection.execute("CREATE ROLE guest LOGIN")
    told = mistake(elsewhere(flq, addresses(flq).dsn.replace("user=flq", "user=guest")), "ls", code=4)
    assert told.message == "PostgreSQL does not allow it: permission denied for schema flq_state"
    assert told.hint == "FLQ_DSN is to name the owner of flq's schema"


@pytest.mark.parametrize("dsn", ["sesame open", "hots=db password=sesame", "postgresql://flq:sesame@[db/flq"])
def test_a_dsn_that_is_none_is_not_quoted(flq: Flq, dsn: str):
    told = mistake(elsewhere(flq, dsn), "ls", code=2)
    assert told.message == "the federation's DSN is no connection string of PostgreSQL"
    assert told.hint.startswith('FLQ_DSN is like "host=')
    assert "sesame" not in told.err


@contextmanager
def all_connections_held(dsn: str) -> Iterator[None]:
    with ExitStack() as held:
        with suppress(psycopg.OperationalError):
            while True:
                held.enter_context(psycopg.connect(dsn))
        yield


def test_a_postgres_that_is_full(flq: Flq, tmp_path: Path):
    """New commands are told so at once; a run that is under way ends as if nothing had been."""
    gate = tmp_path / "gate"
    wait = f"import os, time\n        while not os.path.exists({str(gate)!r}): time.sleep(0.05)"
    app = make_app(tmp_path / "app", client=CLIENT.replace('print("training', f'{wait}\n        print("training'))
    process = flq.start("run", app, "--wait", "--name", "squeezed")
    leased = "select count(*) as n from flq.tasks where run = 'squeezed' and status = 'leased'"
    eventually(lambda: flq.sql(leased)[0]["n"] == 2, what="clients at work")
    with all_connections_held(addresses(flq).dsn):
        told = mistake(flq, "ls", code=5)
        assert told.message == "PostgreSQL takes no more connections: sorry, too many clients already"
        assert told.hint.startswith("close some, or raise its max_connections")
        assert as_json(flq, "run", app, code=5)["code"] == "database_full"
        gate.touch()
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out + err
    assert [run["name"] for run in flq.json("ls")] == ["squeezed"]


@contextmanager
def at_revision(flq: Flq, revision: str) -> Iterator[None]:
    with psycopg.connect(addresses(flq).dsn, autocommit=True) as connection:
        before = connection.execute("SELECT version_num FROM flq_state.alembic_version").fetchone()
        assert before is not None
        connection.execute("UPDATE flq_state.alembic_version SET version_num = %s", [revision])
        try:
            yield
        finally:
            connection.execute("UPDATE flq_state.alembic_version SET version_num = %s", before)


@pytest.mark.parametrize(
    ("revision", "hint"), [("0000", "`flq db upgrade` brings it up"), ("9999", "upgrade flq on this machine")]
)
def test_a_database_at_another_revision(flq: Flq, tmp_path: Path, revision: str, hint: str):
    runs = flq.json("ls")
    here = elsewhere(flq, addresses(flq).dsn)
    here = replace(here, variables={**here.variables, "FLQ_BROKER": addresses(flq).broker})
    servers = (["superlink"], ["superexec", "--name", "y"], ["supernode", "--name", "y"])
    with at_revision(flq, revision):
        for command in (["ls"], ["run", make_app(tmp_path)], ["db", "check"], *servers):
            told = mistake(here, *command, code=1)
            assert told.message.startswith(f"the database is at schema revision {revision}; this flq needs ")
            assert told.hint == hint
        assert as_json(here, "ls", code=1)["code"] == "schema"
    assert flq.json("ls") == runs


def test_an_upgrade_of_a_database_that_is_newer(flq: Flq):
    with at_revision(flq, "9999"):
        told = mistake(flq, "db", "upgrade", code=1)
        assert told.message.startswith("the database is at schema revision 9999; this flq needs ")
        assert told.hint == "upgrade flq on this machine"


def test_a_database_without_the_schema(flq: Flq):
    told = mistake(elsewhere(flq, addresses(flq).dsn.replace("dbname=flq", "dbname=postgres")), "ls", code=1)
    assert told.message.startswith("the database is without flq's schema; this flq needs ")
    assert told.hint == "`flq db upgrade` brings it up"


@pytest.mark.parametrize("broker", ["sesame", "sesame://x:y@z", "localhost:6379"])
@pytest.mark.parametrize("command", ["superlink", "superexec", "monitor"])
def test_a_broker_that_is_no_address_is_not_quoted(flq: Flq, command: str, broker: str):
    here = elsewhere(flq, addresses(flq).dsn)
    told = mistake(replace(here, variables={**here.variables, "FLQ_BROKER": broker}), command, code=2)
    assert told.message == "the federation's broker has no address that Celery understands"
    assert told.hint.startswith("FLQ_BROKER is like redis://")
    assert "sesame" not in told.err


def test_no_broker_at_all(flq: Flq):
    told = mistake(elsewhere(flq, addresses(flq).dsn), "superlink", code=2)
    assert told.message == "this federation has no Celery broker"
    assert told.hint == "set FLQ_BROKER, or `broker` in config.toml"


def stream(flq: Flq, app: Path, name: str) -> subprocess.Popen[str]:
    return flq.start("run", app, "--stream", "--name", name)


def read_until(process: subprocess.Popen[str], said: str) -> str:
    """What a command prints on stderr up to the line with `said`."""
    assert process.stderr is not None
    told = ""
    for line in process.stderr:
        told += line
        if said in line:
            return told
    raise AssertionError(told)


def goes_on(flq: Flq, process: subprocess.Popen[str], name: str, reason: str) -> None:
    """The run has said what it waits for, says so to others, and ends well; its history tells of it."""
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out + err
    assert out.splitlines()[-1] == "sum 8.0"
    history = flq.json("show", name)["events"]
    assert next(event["reason"] for event in history if event["event"] == "delayed") == reason


def test_a_broker_that_is_full(flq: Flq, tmp_path: Path):
    valkey: Any = redis.Redis(unix_socket_path=str(flq.home / "run" / "valkey.sock"))
    valkey.config_set("maxmemory", 1)
    reason = "the Celery broker takes no jobs: its memory is full (maxmemory)"
    try:
        process = stream(flq, make_app(tmp_path), "crowded")
        read_until(process, f"waiting: {reason}")
        assert flq.json("show", "crowded")["waiting"] == reason
    finally:
        valkey.config_set("maxmemory", 0)
        valkey.close()
    goes_on(flq, process, "crowded", reason)


def test_a_broker_that_is_gone(flq: Flq, tmp_path: Path):
    broken = flq.home.parent / "valkey-server.broken"
    broken.touch()
    try:
        kill(pid_of(flq.home, "valkey"))
        process = stream(flq, make_app(tmp_path), "brokerless")
        told = read_until(process, "waiting: the Celery broker cannot be reached: ")
        reason = told.splitlines()[-1].removeprefix("waiting: ")
        assert flq.json("show", "brokerless")["waiting"] == reason
        assert flq.json("status")["state"] == "up"
    finally:
        broken.unlink()
    goes_on(flq, process, "brokerless", reason)


def test_a_federation_that_is_down(flq: Flq, tmp_path: Path):
    """The last one here: it stops the federation."""
    dsn = addresses(flq).dsn
    flq("down")
    told = mistake(flq, "ls", code=5)
    assert told.message == f"there is no federation below {flq.home}"
    assert told.hint == "start one: flq up"
    told = mistake(elsewhere(flq, dsn), "run", make_app(tmp_path), code=5)
    assert told.message.endswith("failed: No such file or directory")
