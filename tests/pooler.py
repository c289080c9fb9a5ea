"""PgBouncer in transaction mode, in front of the tests' Postgres."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.waiting import eventually

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
MISSING = "pgbouncer is not installed (Debian: apt-get install pgbouncer)"

CONFIG = """
[databases]
* = host={sockets} user={user}
[pgbouncer]
listen_addr =
listen_port = 6432
unix_socket_dir = {folder}
auth_type = any
pool_mode = transaction
default_pool_size = 10
max_client_conn = 200
server_reset_query =
logfile =
pidfile =
"""


@contextmanager
def pgbouncer(dsn: str, more: str = "") -> Iterator[str]:
    """Yields the DSN of a PgBouncer before the server of `dsn`, with more lines of configuration.

    It runs as the one who may open the server's socket.
    """
    assert PROGRAM, MISSING
    given = conninfo_to_dict(dsn)
    sockets = Path(str(given["host"]))
    owner = sockets.joinpath(".s.PGSQL.5432").stat()
    folder = Path(tempfile.mkdtemp(prefix="flq-pooler-"))
    config = folder / "pgbouncer.ini"
    config.write_text(CONFIG.format(sockets=sockets, user=given["user"], folder=folder) + more + "\n")
    as_owner = {"user": owner.st_uid, "group": owner.st_gid} if os.geteuid() == 0 else {}
    if as_owner:
        shutil.chown(folder, owner.st_uid, owner.st_gid)
        shutil.chown(config, owner.st_uid, owner.st_gid)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([PROGRAM, "-q", str(config)], stdout=log, stderr=log, **as_owner)  # type: ignore[call-overload]
    pooled = make_conninfo(dsn, host=str(folder), port=6432)

    def answers() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        try:
            psycopg.connect(pooled, dbname="postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    try:
        eventually(answers, what="PgBouncer to take connections")
        yield pooled
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(folder)
