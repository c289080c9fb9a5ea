"""What an app depends on, made importable in the process that is about to load it.

It is installed only where the operator has allowed it (`--install-deps`), and only what is missing: into a folder that
goes in front of `sys.path`, beside the environment of flq itself, which is not touched.

    envs/<sha256>/             the packages, and flq-environment.json, which says for what they were installed
    envs/<sha256>.building/    one that is being built, by the process that holds the flock on `lock` in it

The hash is made from what is missing and from all that is installed already: an environment is never used beside
another one than that it was resolved for. Nothing removes old ones; they may be deleted when nothing runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import json
import os
import platform
import shutil
import site
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import flq
from flq.apps.deps import (
    Unmet,
    applicable,
    install_command,
    installed_version,
    unchecked_dependencies,
    unmet_dependencies,
)
from flq.apps.logger import logger
from flq.apps.project import Project
from flq.errors import AppLoadError, DependencyMissing

INSTALL_SECONDS = 1800.0
"""How long an installation may take, the wait for that of another process included."""

SHOWN_LINES = 15
"""So many of the last lines of pip's output are shown when it fails."""

DESCRIPTION = "flq-environment.json"

_BENEATH = ("flq", "numpy", "packaging", "psycopg", "psycopg-binary", "psycopg-pool", "sqlalchemy")
"""What the processes of apps have loaded before the app: it cannot be replaced any more, nor can what it needs."""

_ELSEWHERE = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER")
"""Of a person's settings for pip those that say where to install to; the others count: indexes, proxies, caches."""

_PAUSE = 0.1


def provide(project: Project, *, where: str, environments: Path | None) -> None:
    """See to it that what the app depends on can be imported in this process.

    `where` names the place for people: a node, or the SuperExec on a host. `environments` is the folder of installed
    environments, None if nothing may be installed. Raises `DependencyMissing` if something is not there, and
    `AppLoadError` if it cannot be installed. For a process that has not loaded the app yet.
    """
    unmet = unmet_dependencies(project)
    if unmet and environments is not None:
        _go_in_front(_environment(project, unmet, where=where, environments=environments))
        unmet = unmet_dependencies(project)
    for text in unchecked_dependencies(project):
        logger.warning("%s is installed here, but whether it is from there cannot be checked", text)
    if unmet:
        raise DependencyMissing(
            f"the app needs {', '.join(map(str, unmet))}, which {where} does not have",
            hint=f"install it there: {install_command(_texts(unmet))}"
            + ("" if environments else "; or let flq do it with --install-deps"),
        )


def _texts(unmet: Sequence[Unmet]) -> list[str]:
    return list(dict.fromkeys(found.requirement for found in unmet))


def _go_in_front(folder: Path) -> None:
    """Import from `folder` first, whose .pth files count."""
    before = list(sys.path)
    site.addsitedir(str(folder))
    added = [path for path in sys.path if path not in before]
    sys.path[:] = [*added, *before]
    importlib.invalidate_caches()


def _environment(project: Project, unmet: Sequence[Unmet], *, where: str, environments: Path) -> Path:
    """The folder in which what is missing is installed; it is made if it is not there."""
    _refuse_to_replace(unmet, where)
    target = environments / _key(unmet)
    if target.is_dir():
        return target
    if find_spec("pip") is None:
        raise AppLoadError(
            f"the app needs {', '.join(map(str, unmet))}, and {where} has no pip to install it with",
            hint=f"{sys.executable} -m ensurepip, or: {install_command(_texts(unmet))}",
        )
    until = time.monotonic() + INSTALL_SECONDS
    with _building(target.with_suffix(".building"), until, where) as (folder, lock):
        if not target.is_dir():  # else another process has built it meanwhile
            began = time.monotonic()
            logger.info("installing dependencies: %s", ", ".join(map(str, unmet)))
            Installation(folder, lock, until=until, where=where).install(_wanted(project, unmet), target)
            logger.info("dependencies installed in %.1f s", time.monotonic() - began)
    return target


def _refuse_to_replace(unmet: Sequence[Unmet], where: str) -> None:
    beneath = _beneath()
    for found in unmet:
        version = beneath.get(canonicalize_name(Requirement(found.requirement).name))
        if version is not None and found.needed is None:
            raise DependencyMissing(
                f"the app needs {found.requirement}, but flq itself runs with {version} on {where}",
                hint=f"--install-deps replaces nothing of that; to do it there: {install_command([found.requirement])}",
            )


def _beneath() -> dict[str, str]:
    """Names and versions of what flq itself has loaded in a process of an app, with what that needs."""
    found: dict[str, str] = {}
    names = list(_BENEATH)
    while names:
        name = canonicalize_name(names.pop())
        version = installed_version(name)
        if name in found or version is None:
            continue
        found[name] = version
        if name != "flq":
            needs = map(Requirement, metadata.requires(name) or ())
            names += [need.name for need in needs if need.marker is None or need.marker.evaluate()]
    return found


def _key(unmet: Sequence[Unmet]) -> str:
    installed = {(found.name, found.version) for found in metadata.distributions()}
    told = [
        flq.__version__,
        sys.prefix,
        sys.version,
        platform.machine(),
        sorted(map(str, unmet)),
        sorted(f"{name}=={version}" for name, version in installed),
    ]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _wanted(project: Project, unmet: Sequence[Unmet]) -> list[str]:
    """All that pip has to know of: also what is met, so that nothing is installed that it does not fit to.

    Not flq, which need not be on any index, nor direct references that are met: pip would fetch them again.
    """
    missing = set(_texts(unmet))
    wanted = [found for found in applicable(project) if str(found) in missing or not found.url]
    return [str(found) for found in wanted if canonicalize_name(found.name) != "flq"]


@contextlib.contextmanager
def _building(folder: Path, until: float, where: str) -> Iterator[tuple[Path, int]]:
    """Be the only process that works in `folder`, which is empty, but for the lock, and gone afterwards."""
    try:
        lock = _locked(folder, until, where)
        try:
            _clear(folder)  # of what a killed process has left
            yield folder, lock
        finally:
            _leave(folder, lock)
    except OSError as exc:
        raise AppLoadError(f"the app's dependencies cannot be installed on {where}: {exc}") from exc


def _locked(folder: Path, until: float, where: str) -> int:
    """The descriptor of the lock in `folder`."""
    told = False
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # its holder has just removed the folder
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if _is_mine(folder / "lock", lock):
                return lock
            os.close(lock)
            if not told:
                logger.info("waiting for another process that installs the same dependencies")
            told = True
            if time.monotonic() > until:
                raise AppLoadError(f"another process on {where} has not installed the dependencies in time")
            time.sleep(_PAUSE)


def _is_mine(path: Path, lock: int) -> bool:
    """Whether the lock is got, and is not one that its last holder has removed."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(path.stat(), os.fstat(lock))
    except (BlockingIOError, FileNotFoundError):
        return False


def _leave(folder: Path, lock: int) -> None:
    """Remove the folder, the lock last: whoever makes a new one finds nothing that is about to be removed."""
    with contextlib.suppress(OSError):
        _clear(folder)
        (folder / "lock").unlink()
    os.close(lock)
    with contextlib.suppress(OSError):  # the next one is there already
        folder.rmdir()


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != "lock":
            entry.unlink()


class Installation:
    """Installs packages by pip: what it chooses beside what is installed already, and nothing else.

    pip inherits the lock, so that it lasts for as long as a pip whose parent was killed.
    """

    def __init__(self, folder: Path, lock: int, *, until: float, where: str) -> None:
        self._folder = folder
        self._lock = lock
        self._until = until
        self._where = where

    def install(self, wanted: Sequence[str], target: Path) -> None:
        """Install what is missing of `wanted` into `target`, all of it or nothing. Raises `AppLoadError`."""
        report, constraints, packages = (self._folder / name for name in ("report.json", "constraints.txt", "packages"))
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in sorted(_beneath().items())))
        # Only without --target does pip take what is installed into account, and only with it can it leave it alone.
        self._pip("--dry-run", "--report", str(report), "--constraint", str(constraints), *wanted)
        chosen = [_pinned(item) for item in json.loads(report.read_bytes())["install"]]
        packages.mkdir()
        if chosen:
            self._pip("--no-deps", "--target", str(packages), *chosen)
        description = {"requirements": list(wanted), "installed": chosen, "python": sys.executable}
        description["at"] = datetime.now(UTC).isoformat()
        (packages / DESCRIPTION).write_text(json.dumps(description, indent=2))
        packages.rename(target)

    def _pip(self, *arguments: str) -> None:
        scratch = self._folder / "tmp"
        scratch.mkdir(exist_ok=True)
        environ = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}
        output = self._folder / "output"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pip", "install", "--no-input", "--no-user", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=self._folder,
                pass_fds=[self._lock],
                env={**environ, "TMPDIR": str(scratch), "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
            )
        try:
            code = process.wait(max(0.0, self._until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise self._failure(f"pip took longer than {INSTALL_SECONDS:.0f} s", output) from None
        if code != 0:
            raise self._failure(None, output)

    def _failure(self, reason: str | None, output: Path) -> AppLoadError:
        lines = [line for line in output.read_text(errors="replace").splitlines() if line.strip()]
        reason = reason or (lines[-1] if lines else "pip failed")
        told = ["pip said:", *lines[-SHOWN_LINES:]] if lines else []
        return AppLoadError(
            "\n".join([f"the app's dependencies cannot be installed on {self._where}: {reason}", *told])
        )


def _pinned(item: dict[str, Any]) -> str:
    """The very package that pip has chosen, as a requirement."""
    name, version = item["metadata"]["name"], item["metadata"]["version"]
    if not item.get("is_direct"):
        return f"{name}=={version}"
    info = item["download_info"]
    vcs = info.get("vcs_info")
    url = f"{vcs['vcs']}+{info['url']}@{vcs['commit_id']}" if vcs else info["url"]
    return f"{name} @ {url}" + (f"#subdirectory={info['subdirectory']}" if "subdirectory" in info else "")
