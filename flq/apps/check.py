"""What can be told of an app without running any of its code."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from flq.apps.deps import applicable, install_command, installed_version, unmet_dependencies
from flq.apps.project import Project

_PYTHON = f"Python {sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong with an app, and the way out."""

    message: str
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Dependency:
    """A dependency of an app: the version that is installed here, and whether that will do."""

    requirement: str
    installed: str | None
    met: bool


def dependencies(project: Project) -> list[Dependency]:
    """The dependencies that apply here."""
    unmet = {found.requirement for found in unmet_dependencies(project)}
    return [
        Dependency(str(found), installed_version(found.name), str(found) not in unmet) for found in applicable(project)
    ]


def dependency_problems(project: Project) -> list[Problem]:
    """A problem for each dependency that is not met here."""
    return [
        Problem(
            f"the app needs {unmet}, which {sys.executable} does not have",
            f"install it there: {install_command([unmet.requirement])}",
        )
        for unmet in unmet_dependencies(project)
    ]


def syntax_problems(folder: Path, files: Sequence[str]) -> list[Problem]:
    """A problem for each of the bundle's files, unpacked in `folder`, that this Python cannot read."""
    return [problem for name in files if name.endswith(".py") for problem in _syntax(folder, name)]


def module_problem(project: Project, component: str, folder: Path) -> Problem | None:
    """What is wrong if the module of `component` is not in the bundle, which is unpacked in `folder`."""
    module = component.partition(":")[0]
    if _module_files(folder, module):
        return None
    if left_out := _module_files(project.path, module):
        name = left_out[0].relative_to(project.path).as_posix()
        return Problem(
            f"{component}: {name} is left out of the bundle",
            "what is left out: [tool.flq.app] exclude, the lines of .gitignore, tests, builds and hidden files",
        )
    if _is_installed(module):
        return None
    path = module.replace(".", "/")
    return Problem(
        f"{component}: the project has no module {module}",
        f"pyproject.toml names it; it is {path}.py or {path}/__init__.py in the project's folder, or below src/",
    )


def _syntax(folder: Path, name: str) -> Iterator[Problem]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile((folder / name).read_bytes(), name, "exec", dont_inherit=True)
    except SyntaxError as exc:
        where = f"{name}, line {exc.lineno}" if exc.lineno else name
        yield Problem(f"{where}: {exc.msg}", f"{_PYTHON} cannot read: {(exc.text or '').strip() or 'the file'}")


def _module_files(root: Path, module: str) -> list[Path]:
    """The files that a module of the project in `root` may stand in, as the loader looks for them."""
    path = module.replace(".", "/")
    places = [root / below / name for below in ("", "src") for name in (f"{path}.py", f"{path}/__init__.py")]
    return [place for place in places if place.is_file()]


def _is_installed(module: str) -> bool:
    """Whether the module belongs to something that is installed, and need not be in the bundle."""
    found = None
    with suppress(ValueError):  # of a module that says nothing of itself, such as __main__
        found = find_spec(module.partition(".")[0])
    return found is not None and found.origin is not None
