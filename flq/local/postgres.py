"""The embedded PostgreSQL: its cluster, its settings, and how it is seen that it is ready."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flq.errors import LocalError, ServerFailed
from flq.local import binaries, identity
from flq.local.identity import Identity
from flq.local.layout import USER, Layout
from flq.local.process import ChildSpec
from flq.settings import Embedded

NAME = "postgres"
INITDB = "initdb"

SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "shared_buffers": "128MB",
    "max_connections": "100",
    "max_wal_size": "1GB",
    "jit": "off",
}
"""For a laptop. Durability is Postgres's own default: `fsync` and `synchronous_commit` are on."""

_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
_OURS = frozenset({"data_directory", "unix_socket_directories", "config_file", "external_pid_file"})
_PARAMETER = re.compile(r"[a-z_][a-z0-9_.]*")
_STATUS_LINE = 8  # LOCK_FILE_LINE_PM_STATUS of Postgres's miscadmin.h; pg_ctl reads it as well


def specs(layout: Layout, embedded: Embedded) -> list[ChildSpec]:
    """What has to be run to have Postgres: `initdb` if there is no cluster yet, and the server.

    Raises `ServerFailed` if there are no programs, no user to run them as, or a cluster of another version.
    """
    programs = binaries.postgres(embedded)
    who = identity.for_postgres(layout.home, programs)
    cluster = layout.pg_data / "PG_VERSION"
    if cluster.exists():
        _insist_on_version(cluster.read_text(encoding="ascii").strip(), programs, layout)
        return [_server(layout, embedded, programs, who, needs=frozenset())]
    return [_initdb(layout, programs, who), _server(layout, embedded, programs, who, needs=frozenset({INITDB}))]


def is_ready(data: Path, pid: int) -> bool:
    """Whether the server `pid` on the data folder `data` takes connections.

    It says so in its pid file, which costs no connection and no failed log-in in the log.
    """
    lines = _pid_file(data)
    return len(lines) >= _STATUS_LINE and lines[0] == str(pid) and lines[_STATUS_LINE - 1].strip() == "ready"


def _initdb(layout: Layout, programs: Path, who: Identity) -> ChildSpec:
    # into a folder of its own, renamed when it is whole: nobody ever sees half a cluster
    draft = layout.home / f"pg.init-{os.getpid()}"

    def prepare() -> None:
        _remove_drafts(layout.home)
        draft.mkdir(mode=0o700)
        who.own(draft)

    def finish() -> None:
        draft.rename(layout.pg_data)
        _sync(layout.home)

    def undo() -> None:
        _remove_drafts(layout.home)

    return ChildSpec(
        name=INITDB,
        argv=(
            str(programs / "initdb"),
            *("-D", str(draft), "-U", USER, "-E", "UTF8", "--no-locale", "--no-instructions"),
            # who may open the socket is a matter of its folder; over TCP, if it is turned on, of a password
            *("--auth-local=trust", "--auth-host=scram-sha-256"),
        ),
        log=layout.log(NAME),
        env=_ENVIRONMENT,
        once=True,
        stop_signal=signal.SIGKILL,
        death_signal=signal.SIGKILL,
        identity=who,
        prepare=prepare,
        finish=finish,
        undo=undo,
    )


def _server(layout: Layout, embedded: Embedded, programs: Path, who: Identity, *, needs: frozenset[str]) -> ChildSpec:
    def prepare() -> None:
        who.own(layout.pg_data)
        _clean_socket_folder(layout.pg_run, who)
        _remove_stale_pid_file(layout.pg_data)

    def ready(pid: int) -> bool:
        return is_ready(layout.pg_data, pid)

    return ChildSpec(
        name=NAME,
        argv=(
            str(programs / "postgres"),
            *("-D", str(layout.pg_data), "-k", str(layout.pg_run)),
            *_arguments(_settings(embedded.postgres, programs)),
        ),
        log=layout.log(NAME),
        env=_ENVIRONMENT,
        needs=needs,
        ready=ready,
        stop_signal=signal.SIGINT,  # a fast stop; SIGTERM would wait for the clients to leave
        death_signal=signal.SIGINT,
        grace=60.0,
        patience=300.0,  # a crash recovery replays up to max_wal_size
        identity=who,
        prepare=prepare,
    )


def _settings(table: Mapping[str, Any], programs: Path) -> dict[str, str]:
    """Ours, and over them those of `[embedded.postgres]`. Raises `LocalError` for what is no setting."""
    settings = dict(SETTINGS)
    if binaries.has_library(programs, "pg_stat_statements"):
        settings["shared_preload_libraries"] = "pg_stat_statements"
    for name, value in table.items():
        if not _PARAMETER.fullmatch(name) or not isinstance(value, str | int | float):
            raise LocalError(
                f"[embedded.postgres] has {name} = {value!r}",
                hint="it holds settings of PostgreSQL: a name, and a text, a number, true or false",
            )
        if name in _OURS:
            raise LocalError(f"[embedded.postgres] has {name}, which flq sets itself", hint="leave it out")
        settings[name] = ("on" if value else "off") if isinstance(value, bool) else str(value)
    return settings


def _arguments(settings: Mapping[str, str]) -> list[str]:
    """On the command line settings take effect at each start, and `config.toml` is the one place for them."""
    return [argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")]


def _insist_on_version(major: str, programs: Path, layout: Layout) -> None:
    ours = binaries.postgres_major(programs)
    if major != ours:
        raise ServerFailed(
            f"the data in {layout.pg_data} is of PostgreSQL {major}, the programs in {programs} are of {ours}",
            hint=f"set FLQ_PG_BIN to the programs of {major}; to move to {ours}, use them to dump, or use pg_upgrade",
        )


def _clean_socket_folder(folder: Path, who: Identity) -> None:
    """Make the socket's folder; remove what a killed server left, as its pid may belong to somebody else now.

    Only the supervisor that holds the lock comes here, when no server of its federation runs.
    """
    folder.mkdir(exist_ok=True, mode=0o700)
    who.own(folder)
    for left in folder.iterdir():
        left.unlink()


def _remove_stale_pid_file(data: Path) -> None:
    """Remove the pid file of a killed server if its pid belongs to another program now.

    Postgres would take that program for a server and refuse to start: after a container is started anew, say,
    where the same few pids are given out again. A server that does live on this data is left to Postgres's own
    checks, of which the one by shared memory needs no pid file.
    """
    lines = _pid_file(data)
    process = Path("/proc", lines[0]) if lines and lines[0].isdigit() else None
    if process is None or not process.exists():
        return
    try:
        is_server = process.joinpath("cwd").samefile(data)
    except OSError:
        is_server = True  # it cannot be told
    if not is_server:
        (data / "postmaster.pid").unlink(missing_ok=True)


def _pid_file(data: Path) -> list[str]:
    try:
        return (data / "postmaster.pid").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _remove_drafts(home: Path) -> None:
    for draft in home.glob("pg.init-*"):
        shutil.rmtree(draft, ignore_errors=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
