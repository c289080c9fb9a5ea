"""What is released: the wheel and the sdist, and a first day with them. `python -m tests.release [PYTHON...]`

For each Python it makes an environment, installs the wheel with all that it depends on, as a person would, and tries it
in an empty folder elsewhere. Without arguments it takes those Pythons that flq supports and that are here.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SUPPORTED = ("python3.11", "python3.12", "python3.13")
TEMPLATES = ("numpy", "sklearn")
PATIENCE = 120.0
INSTALL_PATIENCE = 900.0

_OUTSIDE = """
import sys, sysconfig
from pathlib import Path
import flq
from flq.link.schema import HEAD, migrations
packages = Path(sysconfig.get_path("purelib"))
assert Path(flq.__file__).is_relative_to(packages), flq.__file__
assert migrations().is_relative_to(packages), migrations()
assert list((migrations() / "versions").glob(f"{HEAD}*.py")), HEAD
print(".".join(map(str, sys.version_info[:3])))
"""
"""A program that finds flq and its migrations in the environment's packages, and nowhere else."""


def build(into: Path, source: Path = ROOT, *targets: str) -> list[Path]:
    """Build the sdist and the wheel of `source`, or those that are named; returns their files."""
    into.mkdir(parents=True, exist_ok=True)
    chosen = [argument for target in targets or ("sdist", "wheel") for argument in ("--target", target)]
    _run([sys.executable, "-m", "hatchling", "build", *chosen, "--directory", str(into)], cwd=source)
    return sorted(into.iterdir())


def unpacked(sdist: Path, into: Path) -> Path:
    """The sources that an sdist has."""
    with tarfile.open(sdist) as archive:
        archive.extractall(into, filter="data")
    (source,) = into.iterdir()
    return source


def contents(wheel: Path) -> dict[str, str]:
    """The files of a wheel with their sha256."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}


@dataclass(frozen=True)
class Environment:
    """A virtual environment with flq in it. `options` are those of `subprocess` for its commands."""

    folder: Path
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def packages(self) -> Path:
        """Where its packages are."""
        (found,) = self.folder.glob("lib/python3*/site-packages")
        return found

    def run(self, *command: str | Path, home: Path, cwd: Path) -> str:
        """What a command of the environment prints on stdout, for a person who has set FLQ_HOME and nothing else."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("FLQ_", "PYTHON", "PIP_"))}
        path = f"{self.folder / 'bin'}{os.pathsep}{os.defpath}"
        environ = {**ours, "PATH": path, "HOME": str(home.parent), "FLQ_HOME": str(home), "NO_COLOR": "1"}
        program = self.folder / "bin" / str(command[0])
        return _run([str(program), *map(str, command[1:])], env=environ, cwd=cwd, **self.options)


def install(python: str, wheel: Path, folder: Path, *, beside: str | None = None) -> Environment:
    """Make an environment of `python` with the wheel, and with what it and scikit-learn's template depend on.

    That is installed from the index, or, if `beside` is given, found in that folder of packages, without its flq.
    """
    environment = Environment(folder)
    if beside is None:
        _run([python, "-m", "venv", str(folder)])
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        constraints = ["--constraint", str(ROOT / "constraints.txt")]
        _run([*pip, *constraints, f"flq[demo] @ {wheel.as_uri()}"], timeout=INSTALL_PATIENCE)
        return environment
    _run([python, "-m", "venv", "--without-pip", str(folder)])
    inside = ["--python", str(folder / "bin" / "python"), "install", "--quiet", "--no-index", "--no-deps"]
    _run([sys.executable, "-m", "pip", *inside, str(wheel)])
    (environment.packages / "beside.pth").write_text(f"{beside}\n")
    return environment


def first_day(environment: Environment, folder: Path) -> Iterator[str]:
    """What somebody does first, in the empty folder `folder`; says what was tried. Raises `AssertionError`."""
    home, work = folder / "home", folder / "work"
    work.mkdir()
    if "user" in environment.options:
        for path in (folder, work):
            shutil.chown(path, environment.options["user"])
    before = _state(environment.packages)

    def run(*command: str | Path) -> str:
        return environment.run(*command, home=home, cwd=work)

    yield f"Python {run('python', '-c', _OUTSIDE).strip()}"
    version = run("flq", "--version")
    assert version.split()[0] == "flq"
    assert run("python", "-m", "flq", "--version") == version
    yield version.strip()
    try:
        for template in TEMPLATES:
            name = f"my-{template}"
            run("flq", "new", name, "--template", template)
            run("flq", "app", "check", name)
            last = run("flq", "run", name, "--stream").splitlines()[-1]
            assert last.startswith("accuracy="), last
            yield f"{name} {last}"
        digest, file = run("flq", "build", "my-numpy").split()
        assert hashlib.sha256((work / file).read_bytes()).hexdigest() == digest
        run("flq", "run", file, "--wait")
        yield file
    finally:
        run("flq", "down")
    assert _state(environment.packages) == before, "something was written into site-packages"


def _state(packages: Path) -> dict[str, tuple[int, int]]:
    found = ((path, path.lstat()) for path in packages.rglob("*"))
    return {str(path): (stat.st_size, stat.st_mtime_ns) for path, stat in found if path.is_file()}


def _run(command: Sequence[str], *, timeout: float = PATIENCE, **options: Any) -> str:
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=timeout, **options
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _find(python: str) -> str | None:
    """The program `python`, on the PATH or among pyenv's, if it works."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [shutil.which(python), *map(str, sorted(pyenv.glob(f"versions/*/bin/{python}")))]
    for candidate in filter(None, candidates):
        with suppress(OSError, subprocess.CalledProcessError):
            subprocess.run([candidate, "-c", ""], check=True, capture_output=True)
            return candidate
    return None


def _try(python: str, wheel: Path) -> None:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="flq-") as scratch:
        environment = install(python, wheel, Path(scratch) / "environment")
        installed = time.monotonic()
        day = Path(scratch) / "day"
        day.mkdir()
        told = list(first_day(environment, day))
    print(f"{', '.join(told)} ({installed - began:.0f} s to install, {time.monotonic() - installed:.0f} s)")  # noqa: T201


def main() -> int:
    """Try the wheel; returns 1 if a Python that was asked for is not here, or none is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pythons", nargs="*")
    asked = parser.parse_args().pythons
    found = {python: _find(python) for python in asked or SUPPORTED}
    missing = [python for python, program in found.items() if program is None]
    if missing:
        print(f"not here: {', '.join(missing)}", file=sys.stderr)  # noqa: T201
    if len(missing) == len(found) or (asked and missing):
        return 1
    with tempfile.TemporaryDirectory(prefix="flq-") as scratch:
        sdist, wheel = sorted(build(Path(scratch) / "dist"), key=lambda path: path.suffix)
        (again,) = build(Path(scratch) / "again", unpacked(sdist, Path(scratch) / "source"), "wheel")
        assert contents(again) == contents(wheel), "the sdist makes another wheel"
        for program in filter(None, found.values()):
            _try(program, wheel)
    return 0


if __name__ == "__main__":
    sys.exit(main())
