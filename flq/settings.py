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
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flq.errors import UsageError

EMBEDDED = "embedded"


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


def _config_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise UsageError(f"{path} cannot be read: {exc}") from exc


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
