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

A project for Flower (flwr) has [tool.flwr.app] in its place, with the tables `components` and `config`, and
`fab-include` and `fab-exclude`. It is read as it is.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

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
_FLOWER_TABLE = "tool.flwr.app"
_FLOWER = "flwr"
_ALIAS = "flwr-alias"
_KNOWN = ("serverapp", "clientapp", "include", "exclude", "config")
_EXAMPLE = '[tool.flq.app] with serverapp = "pkg.server:app" and clientapp = "pkg.client:app"'
_TEXTS = {"project.name": "my-app", "project.version": "1.0.0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """An app project as its `pyproject.toml` describes it.

    `path` is the project's folder. `serverapp` and `clientapp` are `module:object`. `config` has flat, dotted keys.
    `include` and `exclude` are patterns like those of a .gitignore. `flq` is the whole table `[tool.flq]`.
    `flower_alias` says that `import flwr` brings the names of flq in the app's processes, `warnings` what of the
    project counts for nothing.
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
    flower_alias: bool = False
    warnings: tuple[str, ...] = ()


def load_project(path: Path) -> Project:
    """Read the project in the folder `path`. Raises `ProjectError`, which names file and key."""
    file = path / PROJECT_FILE
    reader = _Reader(file, _read_toml(file))
    if reader.get(_TABLE) is None and isinstance(reader.get(_FLOWER_TABLE), dict):
        return _flower_project(path, reader)
    app = reader.table(_TABLE)
    unknown = sorted(app.keys() - set(_KNOWN))
    if unknown:
        near = difflib.get_close_matches(unknown[0], _KNOWN, n=1)
        what = f"is unknown; did you mean {near[0]}?" if near else "is unknown"
        raise reader.error(f"{_TABLE}.{unknown[0]}", what, hint=f"known keys: {', '.join(_KNOWN)}")
    return Project(
        path=path,
        name=reader.name(),
        version=reader.text("project.version", default="0"),
        serverapp=reader.component(_TABLE, "serverapp"),
        clientapp=reader.component(_TABLE, "clientapp"),
        config=dict(reader.config(_TABLE)),
        dependencies=reader.requirements("project.dependencies"),
        include=reader.includes(f"{_TABLE}.include"),
        exclude=reader.texts(f"{_TABLE}.exclude"),
        flq=reader.table("tool.flq"),
        flower_alias=reader.flag(f"tool.flq.{_ALIAS}", default=False),
    )


def _flower_project(path: Path, reader: _Reader) -> Project:
    """A project for Flower (flwr). Its dependency on flwr is met by flq."""
    needed, left_out = [], []
    for text in reader.requirements("project.dependencies"):
        requirement = Requirement(text)
        if canonicalize_name(requirement.name) == _FLOWER:
            continue
        if requirement.url is not None and requirement.url.startswith("file:"):
            left_out.append(
                f"the dependency {text!r} names a file of another machine; whether it is met is not checked"
            )
        else:
            needed.append(text)
    return Project(
        path=path,
        name=reader.name(),
        version=reader.text("project.version", default="0"),
        serverapp=reader.component(f"{_FLOWER_TABLE}.components", "serverapp"),
        clientapp=reader.component(f"{_FLOWER_TABLE}.components", "clientapp"),
        config=dict(reader.config(_FLOWER_TABLE)),
        dependencies=tuple(needed),
        include=reader.includes(f"{_FLOWER_TABLE}.fab-include"),
        exclude=reader.texts(f"{_FLOWER_TABLE}.fab-exclude"),
        flq=reader.table("tool.flq") if reader.get("tool.flq") is not None else {},
        flower_alias=reader.flag(f"tool.flq.{_ALIAS}", default=True),
        warnings=tuple(left_out),
    )


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        missing = file if file.parent.is_dir() else f"folder {file.parent}"
        raise ProjectError(f"there is no {missing}", hint="an app project is a folder with a pyproject.toml") from None
    except OSError as exc:
        raise ProjectError(f"{file} cannot be read: {exc.strerror}") from exc
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ProjectError(f"{file} cannot be read: {exc}", hint="it is to be TOML: https://toml.io") from exc


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
            raise self.error(f"[{path}]", "is missing", hint=f"add {_EXAMPLE}")
        if not isinstance(value, dict):
            raise self.error(f"[{path}]", "is not a table", hint=f"for example: {_EXAMPLE}")
        return value

    def text(self, path: str, *, default: str | None = None) -> str:
        value = self.get(path)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or not value:
            what = "is missing" if value is None else f"is {value!r}; it must be text"
            raise self.error(path, what, hint=f'for example: {path.rpartition(".")[2]} = "{_TEXTS.get(path, "text")}"')
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

    def includes(self, path: str) -> tuple[str, ...]:
        found = self.texts(path)
        for text in found:
            if ".." in text.split("/"):
                raise self.error(
                    path, f"holds {text!r}, which leads out of the project", hint="put a copy of it into the project"
                )
        return found

    def flag(self, path: str, *, default: bool) -> bool:
        value = self.get(path)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(path, f"is {value!r}; it must be true or false")
        return value

    def requirements(self, path: str) -> tuple[str, ...]:
        found = self.texts(path)
        for text in found:
            try:
                Requirement(text)
            except InvalidRequirement as exc:
                first = str(exc).partition("\n")[0]
                raise self.error(path, f"holds {text!r}, which is no requirement: {first}") from exc
        return found

    def component(self, table: str, name: str) -> str:
        path = f"{table}.{name}"
        example = f'{name} = "{self.get("project.name") or "pkg"}.{name.removesuffix("app")}:app"'
        if self.get(path) is None:
            raise self.error(path, "is missing", hint=f"for example: {example}")
        value = self.text(path)
        if not _COMPONENT.fullmatch(value):
            raise self.error(path, f"is {value!r}; it must be 'module:object'", hint=f"for example: {example}")
        return value

    def config(self, table: str) -> Iterator[tuple[str, ConfigValue]]:
        config = self.get(f"{table}.config")
        if config is None:
            return
        if not isinstance(config, dict):
            raise self.error(f"[{table}.config]", "is not a table")
        seen: set[str] = set()
        for key, value in flatten(config):
            if not is_config_value(value):
                raise self.error(f"{table}.config.{key}", f"is {value!r}; it must be a bool, a number or text")
            if key in seen:
                raise self.error(f"{table}.config.{key}", "is set twice")
            seen.add(key)
            yield key, value
