"""`flq new`: an app to begin with."""

from __future__ import annotations

import keyword
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import click

from flq.cli.options import examples, json_option
from flq.cli.output import note, print_json
from flq.errors import FlqError, UsageError

TEMPLATES = Path(__file__).parent / "templates"
"""Each is a project that runs as it is. Its package is called after it: `numpy_app`, the project `numpy-app`."""

NAMES = ("numpy", "sklearn", "torch")

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_MADE_BY_PYTHON = "__pycache__"


@click.command(
    "new",
    epilog=examples("flq new fraud", "flq new wards --template sklearn", "flq new ~/apps/vision --template torch"),
)
@click.argument("name", metavar="NAME")
@click.option(
    "--template", type=click.Choice(NAMES), default="numpy", show_default=True, help="What the app trains with."
)
@json_option
def command(*, name: str, template: str, as_json: bool) -> None:
    """Make a small app that runs as it is, in a new folder NAME.

    It trains a model on data that needs no download, in code that is meant to be read and then replaced, piece by
    piece, by your own.
    """
    folder = Path(name).expanduser()
    package = package_name(folder.name)
    files = _make(folder, template, package)
    if as_json:
        told = {"name": folder.name, "package": package, "template": template, "path": str(folder), "files": files}
        print_json(told)
        return
    click.echo(str(folder))
    note(f"its code is in {folder / package}, and README.md says where to begin")
    _tell_what_is_missing(folder)
    note(f"run it: flq run {folder} --stream")


def package_name(project: str) -> str:
    """The name of the package of a project. Raises `UsageError` if there cannot be one that would work."""
    if not _NAME.fullmatch(project):
        raise UsageError(
            f"{project!r} is no name for an app",
            hint="letters, digits, '.', '_' and '-' may stand in it, a letter or a digit first and last",
        )
    package = re.sub(r"[.-]+", "_", project).lower()
    why = _why_not(package)
    if why is not None:
        raise UsageError(f"an app cannot be called {project!r}: {why}", hint=f"for example: flq new my-{project}")
    return package


def _why_not(package: str) -> str | None:
    from flq.apps.bundle import DEFAULT_EXCLUDE
    from flq.apps.patterns import compile_patterns

    if not package.isidentifier() or keyword.iskeyword(package):
        return f"its package would be called {package!r}, which Python cannot import"
    if compile_patterns(DEFAULT_EXCLUDE).match(package, folder=True):
        return f"its package would be called {package!r}, and a folder of that name is left out of bundles"
    if package in {*sys.stdlib_module_names, *metadata.packages_distributions(), *NAMES, "flq"}:
        return f"its package would hide the module {package!r}"
    return None


def _make(folder: Path, template: str, package: str) -> list[str]:
    """Write the project beside `folder` and rename it: there is all of it, or nothing. Returns its files."""
    draft = folder.parent / f".{folder.name}.{secrets.token_hex(4)}"
    try:
        draft.mkdir(parents=True)
        files = _fill(draft, template, {f"{template}_app": package, f"{template}-app": folder.name})
        draft.rename(folder)  # this never replaces a folder that holds something, nor a file
    except OSError as exc:
        if folder.is_symlink() or folder.exists():
            raise FlqError(f"{folder} exists already", hint="choose another name, or an empty folder") from exc
        raise FlqError(f"{folder} cannot be made: {exc.strerror}") from exc
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return files


def _fill(draft: Path, template: str, names: dict[str, str]) -> list[str]:
    files = []
    for source in sorted(_files(TEMPLATES / template)):
        name = _renamed(source.relative_to(TEMPLATES / template).as_posix(), names)
        target = draft / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_renamed(source.read_text(encoding="utf-8"), names), encoding="utf-8")
        files.append(name)
    return files


def _files(root: Path) -> Iterator[Path]:
    return (path for path in root.rglob("*") if path.is_file() and _MADE_BY_PYTHON not in path.parts)


def _renamed(text: str, names: dict[str, str]) -> str:
    return re.sub("|".join(map(re.escape, names)), lambda found: names[found[0]], text)


def _tell_what_is_missing(folder: Path) -> None:
    from flq.apps.deps import install_command, unmet_dependencies
    from flq.apps.project import load_project

    unmet = [found.requirement for found in unmet_dependencies(load_project(folder))]
    if unmet:
        note(f"it needs {', '.join(unmet)}, which is not installed here: {install_command(unmet)}")
