"""The embedded federation with its real Postgres and Valkey; flq's own processes are stand-ins."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import psycopg
import pytest

from flq.errors import ServerFailed
from flq.local import binaries, federation, identity, layout
from flq.local.federation import Addresses
from flq.settings import Embedded
from tests.integration.local_home import (
    kill,
    kill_supervisor,
    pid_of,
    processes,
    stand_in,
    temporary_home,
    wait_until_restarted,
)
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
AS_ORDINARY_USER = ("unshare", "--user", "--map-user=1000", "--map-group=1000")

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="a matter of root")


@pytest.fixture(autouse=True)
def _real_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(federation, "SUPERVISOR", stand_in("servers"))


@pytest.fixture
def home() -> Iterator[Path]:
    with temporary_home() as home:
        yield home


@pytest.fixture
def prepared() -> Iterator[Path]:
    """The home of a federation that has been up and did nothing."""
    with temporary_home(prepared=True) as home:
        yield home


def query(addresses: Addresses, statement: str) -> str:
    with psycopg.connect(addresses.dsn, connect_timeout=5) as connection:
        cursor = connection.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
    return str(row[0]) if row else ""


def valkey(addresses: Addresses, command: str) -> str:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(unquote(addresses.broker.removeprefix("redis+socket://")))
        client.sendall(f"{command}\r\n".encode())
        return client.recv(4096).decode()


def remember(addresses: Addresses) -> None:
    query(addresses, "CREATE TABLE memory AS SELECT 'elephant' AS animal")
    valkey(addresses, "SET animal elephant")
    valkey(addresses, "WAITAOF 1 0 2000")


def remembers(addresses: Addresses) -> bool:
    return query(addresses, "SELECT animal FROM memory") == "elephant" and "elephant" in valkey(addresses, "GET animal")


def postgres_uid(home: Path) -> int:
    return Path("/proc", str(pid_of(home, "postgres"))).stat().st_uid


def test_the_first_start_makes_a_durable_database_with_the_schema(home: Path):
    addresses = federation.up(home)
    assert query(addresses, "SELECT current_database()") == "flq"
    assert query(addresses, "SELECT count(*) FROM flq_state.alembic_version") == "1"
    assert query(addresses, "SHOW fsync") == "on"
    assert query(addresses, "SHOW synchronous_commit") == "on"
    assert query(addresses, "SHOW data_checksums") == "on"
    assert query(addresses, "SHOW listen_addresses") == ""
    assert query(addresses, "SHOW server_encoding") == "UTF8"
    assert "noeviction" in valkey(addresses, "CONFIG GET maxmemory-policy")
    assert "everysec" in valkey(addresses, "CONFIG GET appendfsync")


def test_history_outlives_down_and_up(prepared: Path):
    remember(federation.up(prepared))
    federation.down(prepared)
    assert processes(prepared) == []
    assert remembers(federation.up(prepared))


def test_killed_servers_come_back_with_their_data(prepared: Path):
    addresses = federation.up(prepared)
    remember(addresses)
    stand_ins = {name: pid_of(prepared, name) for name in ("superlink", "superexec", "supernode")}
    for name in ("postgres", "valkey"):
        former = pid_of(prepared, name)
        kill(former)
        wait_until_restarted(prepared, name, former=former)
    assert remembers(addresses)
    assert {name: pid_of(prepared, name) for name in stand_ins} == stand_ins


def test_a_killed_supervisor_leaves_no_server_and_the_next_one_has_the_history(prepared: Path):
    addresses = federation.up(prepared)
    remember(addresses)
    with psycopg.connect(addresses.dsn):  # an open session does not hold the end up
        kill_supervisor(prepared)
        assert remembers(federation.up(prepared))
    log = (prepared / "log" / "postgres.log").read_text()
    assert "database system was not properly shut down" not in log
    kill_supervisor(prepared)
    eventually(lambda: not processes(prepared), what="the end of all processes")


def test_an_end_during_the_very_first_start_leaves_no_half_cluster(home: Path):
    def end(message: str) -> None:
        if message == "initdb: starting":
            kill_supervisor(home)

    with pytest.raises(ServerFailed):
        federation.up(home, progress=end)
    assert query(federation.up(home), "SELECT 1") == "1"
    assert list(home.glob("pg.init-*")) == []


def test_settings_of_the_configuration_take_effect_at_the_next_start(prepared: Path):
    addresses = federation.up(prepared)
    assert query(addresses, "SHOW shared_buffers") == "128MB"
    assert query(addresses, "SHOW shared_preload_libraries") == "pg_stat_statements"
    federation.down(prepared)
    (prepared / "config.toml").write_text(
        "[embedded.postgres]\nshared_buffers = '64MB'\nwork_mem = 8192\nlog_lock_waits = true\n"
    )
    federation.up(prepared)
    assert query(addresses, "SHOW shared_buffers") == "64MB"
    assert query(addresses, "SHOW work_mem") == "8MB"
    assert query(addresses, "SHOW log_lock_waits") == "on"


def test_a_setting_that_postgres_refuses_is_shown_in_its_words(home: Path):
    home.mkdir()
    (home / "config.toml").write_text("[embedded.postgres]\nshared_buffers = 'plenty'\n")
    with pytest.raises(ServerFailed, match="postgres ended with exit code 1") as failed:
        federation.up(home)
    assert 'invalid value for parameter "shared_buffers": "plenty"' in failed.value.message
    assert processes(home) == []


def test_data_of_another_version_is_not_touched(home: Path):
    (home / "pg").mkdir(parents=True)
    (home / "pg" / "PG_VERSION").write_text("9\n")
    with pytest.raises(ServerFailed, match="is of PostgreSQL 9") as failed:
        federation.up(home)
    assert "FLQ_PG_BIN" in (failed.value.hint or "")
    assert [path.name for path in (home / "pg").iterdir()] == ["PG_VERSION"]


def test_a_pid_file_that_names_a_stranger_does_not_stop_postgres(prepared: Path):
    addresses = federation.up(prepared)
    remember(addresses)
    kill(pid_of(prepared, "postgres"))
    federation.down(prepared)
    pid_file = prepared / "pg" / "postmaster.pid"
    if not pid_file.exists():  # Postgres may have come back before the end
        pid_file.write_text(f"1\n{prepared / 'pg'}\n1\n5432\n\n\n\nready   \n")
    lines = pid_file.read_text().splitlines()
    pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    assert remembers(federation.up(prepared))


def test_a_home_with_a_long_path_has_its_sockets_elsewhere(home: Path):
    long = home / ("deep " * 20)
    try:
        remember(addresses := federation.up(long))
        assert remembers(addresses)
        run = layout.locate(long).run
        assert not run.is_relative_to(home)
        assert run.stat().st_mode & 0o077 in {0, 0o011}
    finally:
        federation.down(long)
    assert not run.exists()


@only_root
def test_root_below_an_open_path_hands_postgres_to_nobody():
    if not _passable(binaries.postgres(Embedded())):
        pytest.skip("the programs of Postgres are below a closed folder here")
    with temporary_home(mode=0o755) as home:
        remember(federation.up(home))
        assert postgres_uid(home) == identity._nobody()[0]
        federation.down(home)
        # it is closed: what belonged to nobody is root's again, as seen from here
        home.parent.chmod(0o700)
        assert remembers(federation.up(home))
        assert postgres_uid(home) == 0
        assert (home / "pg").stat().st_uid == 0
        federation.down(home)
        home.parent.chmod(0o755)
        assert remembers(federation.up(home))
        assert (home / "pg").stat().st_uid == identity._nobody()[0]
        kill_supervisor(home)
        eventually(lambda: not processes(home), what="the end of all processes")


@only_root
def test_root_below_a_closed_path_changes_no_permission(home: Path):
    remember(federation.up(home))
    assert home.parent.stat().st_mode & 0o777 == 0o700
    pid = pid_of(home, "postgres")
    assert Path(f"/proc/{pid}/uid_map").read_text().split() == [str(identity._nobody()[0]), "0", "1"]
    assert (home / "pg").stat().st_uid == 0


@only_root
def test_root_is_told_why_and_the_way_out_when_nothing_works(home: Path, monkeypatch: pytest.MonkeyPatch):
    home.mkdir()
    monkeypatch.setattr(identity.Identity, "_enter_namespace", _refused)
    with pytest.raises(ServerFailed, match=f"{home.parent} is closed to others.*Operation not permitted") as failed:
        identity.for_postgres(home, Path("/bin"))
    assert "FLQ_HOME" in (failed.value.hint or "")


def test_an_ordinary_user_has_a_federation(home: Path):
    code = f"""
import os
from pathlib import Path
from flq.errors import LocalError
from tests.integration import test_local_servers as t
assert os.geteuid() != 0
t.federation.SUPERVISOR = t.stand_in("servers")
home = Path({str(home)!r})
try:
    t.remember(t.federation.up(home))
    assert t.postgres_uid(home) == os.geteuid()
    t.federation.down(home)
    assert t.remembers(t.federation.up(home))
finally:
    t.federation.down(home)
closed = home / "closed"
closed.mkdir(mode=0o500)
for place in (closed, closed / "home"):
    try:
        t.federation.up(place)
    except LocalError as exc:
        print(exc.message)
"""
    command = [*(AS_ORDINARY_USER if os.geteuid() == 0 else ()), sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    if "unshare failed" in done.stderr:
        pytest.skip("user namespaces are refused here")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{home}/closed cannot be written to",
        f"{home}/closed/home cannot be created: Permission denied",
    ]


def _refused(_self: object) -> None:
    raise PermissionError(1, "Operation not permitted")


def _passable(path: Path) -> bool:
    return all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents))
