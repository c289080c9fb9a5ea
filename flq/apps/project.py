"""An app project: what its `pyproject.toml` says to flq, and the configuration of a run.

[project]
name = "digits"
version = "1.0"
dependencies = ["numpy"]

[tool.flq.app]
serverapp = "digits.server:app"
clientapp = "digits.client:app"
include = ["data/*.csv"]            # besides source code and text

[tool.flq.app.config]               # the defaults of `--run-config`
num-rounds = 3
optimizer.lr = 0.1                  # "optimizer.lr" in the run's configuration
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flq.apps.runconfig import (
    flatten,
    is_config_value,
    load_run_config_file,
    override_config,
    parse_key_values,
)
from flq.errors import ProjectError
from flq.wire.runs import ConfigValue

__all__ = [
    "PROJECT_FILE",
    "Project",
    "load_project",
    "load_run_config_file",
    "override_config",
    "parse_key_values",
]

PROJECT_FILE = "pyproject.toml"

_COMPONENT = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_TABLE = "tool.flq.app"
_KNOWN = ("serverapp", "clientapp", "include", "exclude", "config")


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """An app project as its `pyproject.toml` describes it.

    `path` is the project's folder. `serverapp` and `clientapp` are `module:object`. `config` has flat, dotted keys.
    `include` and `exclude` are patterns like those of a .gitignore. `flq` is the whole table `[tool.flq]`.
    """

    path: Path
    name: str
    version: str
    serverapp: str
    clientapp: str
    config: Mapping[str, ConfigValue]
    dependencies: tuple[str, ...]
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    flq: Mapping[str, Any] = field(default_factory=dict, repr=False)


def load_project(path: Path) -> Project:
    """Read the project in the folder `path`. Raises `ProjectError`, which names file and key."""
    file = path / PROJECT_FILE
    reader = _Reader(file, _read_toml(file))
    app = reader.table(_TABLE)
    unknown = sorted(app.keys() - set(_KNOWN))
    if unknown:
        raise reader.error(f"{_TABLE}.{unknown[0]}", "is unknown", hint=f"known keys: {', '.join(_KNOWN)}")
    return Project(
        path=path,
        name=reader.name(),
        version=reader.text("project.version", default="0"),
        serverapp=reader.component("serverapp"),
        clientapp=reader.component("clientapp"),
        config=dict(reader.config()),
        dependencies=reader.texts("project.dependencies"),
        include=reader.texts(f"{_TABLE}.include"),
        exclude=reader.texts(f"{_TABLE}.exclude"),
        flq=reader.table("tool.flq"),
    )


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ProjectError(f"there is no {file}", hint="an app project is a folder with a pyproject.toml") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ProjectError(f"{file} cannot be read: {exc}") from exc


@dataclass(frozen=True, slots=True)
class _Reader:
    """Takes values out of a TOML document by their dotted path, with errors that name file and key."""

    file: Path
    document: Mapping[str, Any]

    def error(self, key: str, what: str, *, hint: str | None = None) -> ProjectError:
        return ProjectError(f"{self.file}: {key} {what}", hint=hint)

    def get(self, path: str) -> Any:
        value: Any = self.document
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def table(self, path: str) -> dict[str, Any]:
        value = self.get(path)
        if value is None and path == _TABLE:
            if self.get("tool.flwr.app") is not None:
                hint = "this is a project for Flower (flwr); its sections are not read, add [tool.flq.app]"
            else:
                hint = 'add [tool.flq.app] with serverapp = "pkg.server:app" and clientapp = "pkg.client:app"'
            raise self.error(f"[{path}]", "is missing", hint=hint)
        if not isinstance(value, dict):
            raise self.error(f"[{path}]", "is not a table")
        return value

    def text(self, path: str, *, default: str | None = None) -> str:
        value = self.get(path)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or not value:
            raise self.error(path, "is missing" if value is None else f"is {value!r}; it must be text")
        return value

    def name(self) -> str:
        name = self.text("project.name")
        if not _NAME.fullmatch(name):
            raise self.error("project.name", f"is {name!r}; letters, digits, '.', '_' and '-' may stand in it")
        return name

    def texts(self, path: str) -> tuple[str, ...]:
        value = self.get(path)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            raise self.error(path, f"is {value!r}; it must be a list of texts")
        return tuple(value)

    def component(self, name: str) -> str:
        path = f"{_TABLE}.{name}"
        example = f'{name} = "{self.get("project.name") or "pkg"}.{name.removesuffix("app")}:app"'
        if self.get(path) is None:
            raise self.error(path, "is missing", hint=f"for example: {example}")
        value = self.text(path)
        if not _COMPONENT.fullmatch(value):
            raise self.error(path, f"is {value!r}; it must be 'module:object'", hint=f"for example: {example}")
        return value

    def config(self) -> Iterator[tuple[str, ConfigValue]]:
        config = self.get(f"{_TABLE}.config")
        if config is None:
            return
        if not isinstance(config, dict):
            raise self.error(f"[{_TABLE}.config]", "is not a table")
        seen: set[str] = set()
        for key, value in flatten(config):
            if not is_config_value(value):
                raise self.error(f"{_TABLE}.config.{key}", f"is {value!r}; it must be a bool, a number or text")
            if key in seen:
                raise self.error(f"{_TABLE}.config.{key}", "is set twice")
            seen.add(key)
            yield key, value
