"""Whether what an app depends on is installed where it is to run."""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from flq.apps.project import PROJECT_FILE, Project
from flq.errors import ProjectError

_OURSELVES = "flq"


def missing_dependencies(project: Project) -> list[str]:
    """Those of the project's dependencies that are not installed, or not in a version that fits.

    Requirements whose marker does not apply here count as met. Raises `ProjectError` if one cannot be read.
    """
    return [text for text in project.dependencies if not _met(_requirement(project, text))]


def _requirement(project: Project, text: str) -> Requirement:
    try:
        return Requirement(text)
    except InvalidRequirement as exc:
        file = project.path / PROJECT_FILE
        raise ProjectError(f"{file}: project.dependencies holds {text!r}, which is no requirement: {exc}") from exc


def _met(requirement: Requirement) -> bool:
    if canonicalize_name(requirement.name) == _OURSELVES:
        return True
    if requirement.marker is not None and not requirement.marker.evaluate():
        return True
    try:
        installed = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return False
    return requirement.specifier.contains(installed, prereleases=True)
