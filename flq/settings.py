"""Settings: the only reader of the environment.

A setting comes from the command line, else from the environment, else from `[tool.flq]` of the project, else
from `$FLQ_HOME/config.toml`. Named federations stand in that file, in tables of their own:

    federation = "hospitals"            # the default one

    [federations.hospitals]
    dsn = "host=db.example.org dbname=flq user=flq"
    broker = "rediss://broker.example.org/0"

Without a DSN from any of these the federation is the embedded one below `$FLQ_HOME`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flq.errors import UsageError

EMBEDDED = "embedded"
POSTGRES_PORT = 5432


@dataclass(frozen=True, slots=True)
class Settings:
    """Where this process finds its federation.

    `dsn` and `broker` are None for the embedded federation, whose addresses its supervisor hands out. They may
    hold passwords, hence `repr=False`.
    """

    home: Path
    federation: str = EMBEDDED
    dsn: str | None = field(default=None, repr=False)
    broker: str | None = field(default=None, repr=False)
    color: bool = True

    @property
    def embedded(self) -> bool:
        """Whether the federation is the one that `flq up` starts below `home`."""
        return self.dsn is None


def load(
    *,
    home: Path | None = None,
    federation: str | None = None,
    project: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """Resolve the settings; `project` is the `[tool.flq]` table of the app project, if there is one.

    Raises `UsageError` if `config.toml` cannot be read or names no such federation.
    """
    where = home or Path(environ.get("FLQ_HOME") or Path.home() / ".flq")
    where = Path(os.path.abspath(where.expanduser()))  # noqa: PTH100 - resolve() would follow links
    tables = [dict(project or {}), _config_file(where / "config.toml")]
    chosen = federation or environ.get("FLQ_FEDERATION") or _first(tables, "federation")
    named = _federation(tables, chosen)
    direct = {} if federation else {"dsn": environ.get("FLQ_DSN"), "broker": environ.get("FLQ_BROKER")}
    dsn = direct.get("dsn") or named.get("dsn")
    broker = direct.get("broker") or named.get("broker")
    return Settings(
        home=where,
        federation=chosen or ("environment" if dsn else EMBEDDED),
        dsn=dsn,
        broker=broker,
        color="NO_COLOR" not in environ,
    )


@dataclass(frozen=True, slots=True)
class Embedded:
    """What the embedded federation is made of.

    `pg_bin` is the folder of `initdb` and `postgres` (`FLQ_PG_BIN`), `valkey` the server's program
    (`FLQ_VALKEY_BIN`); None means those that came with flq. `postgres` is the table `[embedded.postgres]` of
    `$FLQ_HOME/config.toml`: settings of the server, by their names there. `install_deps` is `install-deps` of
    `[embedded]`: whether to install what apps depend on, as `flq up --install-deps` does.
    """

    pg_bin: Path | None = None
    valkey: Path | None = None
    postgres: Mapping[str, Any] = field(default_factory=dict)
    install_deps: bool = False

    @property
    def port(self) -> int:
        """The port of PostgreSQL. Its socket is named after it, whether it listens there or not."""
        found: int = self.postgres.get("port", POSTGRES_PORT)
        return found


def embedded(home: Path, *, environ: Mapping[str, str] = os.environ) -> Embedded:
    """Read how the embedded federation below `home` is set up. Raises `UsageError` if `config.toml` cannot be read."""
    file = home / "config.toml"
    table = _config_file(file).get("embedded", {})
    if not isinstance(table, dict) or not isinstance(table.get("postgres", {}), dict):
        raise UsageError(f"{file} cannot be read: embedded and embedded.postgres are tables")
    if not isinstance(table.get("postgres", {}).get("port", POSTGRES_PORT), int):
        raise UsageError(f"{file} cannot be read: embedded.postgres.port is a number")
    install_deps = table.get("install-deps", False)
    if not isinstance(install_deps, bool):
        raise UsageError(f"{file} cannot be read: embedded.install-deps is true or false")
    pg_bin, valkey = environ.get("FLQ_PG_BIN"), environ.get("FLQ_VALKEY_BIN")
    return Embedded(
        pg_bin=Path(pg_bin) if pg_bin else None,
        valkey=Path(valkey) if valkey else None,
        postgres=table.get("postgres", {}),
        install_deps=install_deps,
    )


def child_environment(changes: Mapping[str, str | None], *, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment for a process that this one starts: its own, with `changes`; None removes a variable."""
    merged: dict[str, str | None] = {**environ, **changes}
    return {name: value for name, value in merged.items() if value is not None}


FAILPOINTS = "FLQ_FAILPOINTS"


def failpoints(environ: Mapping[str, str] = os.environ) -> str | None:
    """What arms the fail-points (see `flq.failpoints`), or None: outside of tests nothing does."""
    return environ.get(FAILPOINTS)


def announce_ready(environ: MutableMapping[str, str] = os.environ) -> None:
    """Tell the supervisor that this process does its work from now on.

    The supervisor hands the write end of a pipe down in `FLQ_READY_FD`. It is closed here, and the variable
    removed, so that no process that this one starts announces anything. Without the variable nothing happens.
    """
    number = environ.pop("FLQ_READY_FD", None)
    if number is None:
        return
    with suppress(OSError), os.fdopen(int(number), "wb") as pipe:  # the supervisor may have gone
        pipe.write(b"ready\n")


def _config_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else exc
        raise UsageError(f"{path} cannot be read: {why}") from exc


def _first(tables: list[dict[str, Any]], key: str) -> str | None:
    return next((str(table[key]) for table in tables if key in table), None)


def _federation(tables: list[dict[str, Any]], name: str | None) -> dict[str, Any]:
    if name == EMBEDDED:
        return {}
    if name is None:
        return {key: found for key in ("dsn", "broker") if (found := _first(tables, key))}
    for table in tables:
        found = table.get("federations", {}).get(name)
        if found is not None:
            return dict(found)
    known = sorted({key for table in tables for key in table.get("federations", {})} | {EMBEDDED})
    raise UsageError(f"there is no federation named {name!r}", hint=f"known ones: {', '.join(known)}")
