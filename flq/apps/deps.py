"""Whether what an app depends on is installed where it is to run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from importlib import metadata
from importlib.util import find_spec

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

import flq
from flq.apps.project import Project

_OURSELVES = "flq"


@dataclass(frozen=True, slots=True)
class Unmet:
    """A requirement of an app that is not met here.

    `requirement` is as pip takes it, without its marker, which applies. `installed` is the version that does not fit;
    None if there is none. `needed` is what an extra of the requirement needs, if that is what is not met.
    """

    requirement: str
    installed: str | None = None
    needed: str | None = None

    def __str__(self) -> str:
        about = [f"which needs {self.needed}"] if self.needed else []
        about += [f"{self.installed} is installed"] if self.installed else []
        return f"{self.requirement} ({'; '.join(about)})" if about else self.requirement


def applicable(project: Project) -> list[Requirement]:
    """The project's dependencies whose markers apply here, without these markers."""
    return [_unmarked(found) for found in map(Requirement, project.dependencies) if _applies(found)]


def unmet_dependencies(project: Project) -> list[Unmet]:
    """Those of the project's dependencies that are not installed, or not in a version that fits.

    The extras of a dependency are looked into; what its own dependencies are is its own affair. Of a direct reference
    (`name @ url`) only the presence counts: which build of it is installed cannot be told.
    """
    return [unmet for requirement in applicable(project) for unmet in _unmet(requirement)]


def unchecked_dependencies(project: Project) -> list[str]:
    """The direct references among the project's dependencies that are installed, in whatever build."""
    return [str(found) for found in applicable(project) if found.url and not _unmet(found)]


def install_command(requirements: Sequence[str]) -> str:
    """The command that installs `requirements` for this very interpreter."""
    if find_spec("pip") is None:  # an environment that uv has made
        return shlex.join(["uv", "pip", "install", "--python", sys.executable, *requirements])
    return shlex.join([sys.executable, "-m", "pip", "install", *requirements])


def installed_version(name: str) -> str | None:
    """The version of a distribution that is installed here, or None."""
    if canonicalize_name(name) == _OURSELVES:
        return flq.__version__  # also if it runs from a checkout
    try:
        return metadata.version(name) or None
    except metadata.PackageNotFoundError:
        return None


def _unmet(requirement: Requirement) -> list[Unmet]:
    installed = installed_version(requirement.name)
    if installed is None or not _fits(requirement, installed):
        return [Unmet(str(requirement), installed)]
    looked_into: set[tuple[str, str]] = {(canonicalize_name(requirement.name), extra) for extra in requirement.extras}
    return [
        replace(unmet, requirement=str(requirement), needed=unmet.requirement)
        for unmet in _unmet_extras(requirement, looked_into)
    ]


def _unmet_extras(requirement: Requirement, looked_into: set[tuple[str, str]]) -> Iterator[Unmet]:
    """What the extras of an installed requirement need, and theirs in turn."""
    for needed in _needed_by_extras(requirement):
        installed = installed_version(needed.name)
        if installed is None or not _fits(needed, installed):
            yield Unmet(str(needed), installed)
            continue
        fresh = {(canonicalize_name(needed.name), extra) for extra in needed.extras} - looked_into
        if fresh:
            looked_into |= fresh
            yield from _unmet_extras(needed, looked_into)


def _needed_by_extras(requirement: Requirement) -> Iterator[Requirement]:
    if not requirement.extras:
        return
    for text in metadata.requires(requirement.name) or ():
        found = Requirement(text)
        marker = found.marker
        if marker is None or marker.evaluate({"extra": ""}):
            continue  # needed with and without
        if any(marker.evaluate({"extra": extra}) for extra in requirement.extras):
            yield _unmarked(found)


def _applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate()


def _unmarked(requirement: Requirement) -> Requirement:
    found = copy(requirement)
    found.marker = None
    return found


def _fits(requirement: Requirement, installed: str) -> bool:
    try:
        version = Version(installed)
    except InvalidVersion:
        return not requirement.specifier
    if canonicalize_name(requirement.name) == _OURSELVES:
        version = Version(version.base_version)  # a development version counts as what it will become
    return requirement.specifier.contains(version, prereleases=True)
