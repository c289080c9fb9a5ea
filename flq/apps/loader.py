"""Loads an app from its unpacked bundle into this process."""

from __future__ import annotations

import importlib
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from flq.apps import alias
from flq.apps.clientapp import ClientApp
from flq.apps.project import Project, load_project
from flq.apps.serverapp import ServerApp
from flq.errors import AppLoadError

App = TypeVar("App", ServerApp, ClientApp)


def load_serverapp(folder: Path) -> ServerApp:
    """The ServerApp of the project in `folder`, whose modules go first from now on.

    Raises `AppLoadError`, with the app's own exception as its cause, or `ProjectError`.
    """
    project = load_project(folder)
    return _load(project, project.serverapp, ServerApp)


def load_clientapp(folder: Path) -> ClientApp:
    """The ClientApp of the project in `folder`, whose modules go first from now on.

    Raises `AppLoadError`, with the app's own exception as its cause, or `ProjectError`.
    """
    project = load_project(folder)
    return _load(project, project.clientapp, ClientApp)


def _load(project: Project, component: str, kind: type[App]) -> App:
    folder = project.path
    _go_first(folder)
    if project.flower_alias:
        alias.install()
    module_name, _, path = component.partition(":")
    found: object = _import(module_name, folder)
    hint = f"pyproject.toml names an object made by {kind.__name__}()"
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as exc:
            raise AppLoadError(f"the module {module_name} has no {path!r}", hint=hint) from exc
    if not isinstance(found, kind):
        raise AppLoadError(f"{component} is no {kind.__name__} but {_described(found)}", hint=hint)
    return found


def _go_first(folder: Path) -> None:
    for path in (folder / "src", folder):
        if path.is_dir():
            if str(path) in sys.path:
                sys.path.remove(str(path))
            sys.path.insert(0, str(path))
    importlib.invalidate_caches()


def _import(module_name: str, folder: Path) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (module_name == exc.name or module_name.startswith(f"{exc.name}.")):
            hint = "flq app check shows what is in the bundle, and what is left out"
            raise AppLoadError(f"the app has no module {module_name}, which pyproject.toml names", hint=hint) from exc
        if exc.name is not None and alias.covers(exc.name):
            off = None if alias.is_installed() else "[tool.flq] flwr-alias = true lets flq stand in for Flower (flwr)"
            raise AppLoadError(f"importing {module_name} failed: {exc}", hint=off) from exc
        raise AppLoadError(
            f"the app needs the module {exc.name}, which is not installed here",
            hint="list it in [project] dependencies and install it where the app runs",
        ) from exc
    except (Exception, SystemExit) as exc:
        raise AppLoadError(f"importing {module_name} failed: {headline(exc)}\n{app_frames(exc, folder)}") from exc


def _described(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"of type {type(value).__name__}"


def headline(exc: BaseException) -> str:
    """An error in one line: its type, and the first line of what it says."""
    text = str(exc).strip().partition("\n")[0]
    return type(exc).__name__ + (f": {text}" if text else "")


def app_frames(exc: BaseException, folder: Path) -> str:
    """The traceback of `exc` and its causes with the app's own frames only, ending with the error itself.

    Files have the names that they have in the project, whose author has never seen the unpacked bundle.
    """
    shown = traceback.TracebackException.from_exception(exc, compact=True)
    root = folder.absolute()
    _cut(shown, (root, root.resolve()), set())
    return "".join(shown.format()).rstrip()


def _cut(shown: traceback.TracebackException, roots: tuple[Path, ...], seen: set[int]) -> None:
    if id(shown) in seen:
        return
    seen.add(id(shown))
    own = []
    for frame in shown.stack:
        name = _within(frame.filename, roots)
        if name is not None:
            frame.filename = name  # its line has been read
            own.append(frame)
    shown.stack = traceback.StackSummary.from_list(own)
    broken = getattr(shown, "filename", None)  # of a SyntaxError
    if broken is not None:
        shown.filename = _within(broken, roots) or broken
    for other in (shown.__cause__, shown.__context__, *(shown.exceptions or ())):
        if other is not None:
            _cut(other, roots, seen)


def _within(filename: str, roots: tuple[Path, ...]) -> str | None:
    """The name of a file below one of `roots`; None for any other."""
    for root in roots:
        with suppress(ValueError):
            return Path(filename).relative_to(root).as_posix()
    return None
