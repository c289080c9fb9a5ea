"""`flq app`: an app before it runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from flq.cli.options import examples, json_option
from flq.cli.output import Failure, note, print_failure, print_json, print_table, size
from flq.wire.runs import ConfigValue

if TYPE_CHECKING:
    from flq.apps.bundle import Packed
    from flq.apps.check import Dependency, Problem
    from flq.apps.project import Project

IMPORT_SECONDS = 120.0
"""So long may the two halves of an app take to be imported."""

EntryState = Literal["ok", "failed", "not tried"]


@dataclass(frozen=True, slots=True)
class File:
    """A file of a bundle, and its size before it is packed."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class EntryPoint:
    """One half of an app. `provides` is `main`, or the types of messages that it answers."""

    half: str
    component: str
    state: EntryState
    provides: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Bundle:
    """What would be sent: `size` is that of the archive, `unpacked` that of its files."""

    hash: str
    size: int
    unpacked: int
    files: Sequence[File]


@dataclass(frozen=True, slots=True)
class Picture:
    """All that a check finds. `python` is the interpreter that it speaks of."""

    app: str
    version: str
    path: str
    python: str
    bundle: Bundle
    entry_points: Sequence[EntryPoint]
    config: Mapping[str, ConfigValue]
    dependencies: Sequence[Dependency]
    problems: Sequence[Problem]


@click.group(
    "app",
    epilog=examples("flq app check", "flq app check examples/digits --json | jq -r '.data.bundle.files[].name'"),
)
def command() -> None:
    """Look at an app before it runs: flq app check."""


@command.command(
    "check",
    epilog=examples("flq app check", "flq app check examples/digits", "flq app check digits-1.0.0-0af3b2c1.flq.zip"),
)
@click.argument("app", type=click.Path(path_type=Path), default=".")
@click.option("--no-import", "no_import", is_flag=True, help="Run none of the app's code.")
@json_option
def check(*, app: Path, no_import: bool, as_json: bool) -> int:
    """Show what would be bundled of an app, and what is wrong with it.

    APP is the project's folder, by default this one, or a bundle's file. Both halves of the app are loaded from an
    unpacked bundle, each in a process of its own, by the Python that flq runs with. Exits with 1 if something is wrong,
    with 2 if it is so wrong that there is nothing to be looked at.
    """
    from flq.apps.bundle_file import open_app

    found = _picture(*open_app(app), may_import=not no_import)
    failure = _failure(found)
    if as_json:
        print_json(found, failure)
        return int(failure is not None)
    _print(found)
    for problem in found.problems:
        print_failure(Failure("problem", problem.message, problem.hint), as_json=False)
    if failure is None:
        note("nothing is wrong" + ("; the code was not run" if no_import else ""))
    return int(failure is not None)


def _picture(project: Project, packed: Packed, *, may_import: bool) -> Picture:
    from flq.apps.check import dependencies

    with _unpacked(packed) as folder:
        entry_points, problems = _look(project, packed, folder, may_import=may_import)
    return Picture(
        app=project.name,
        version=project.version,
        path=str(project.path.absolute()),
        python=sys.executable,
        bundle=_bundle(packed),
        entry_points=entry_points,
        config=project.config,
        dependencies=dependencies(project),
        problems=problems,
    )


@contextmanager
def _unpacked(packed: Packed) -> Iterator[Path]:
    from flq.apps.bundle import unpack

    with tempfile.TemporaryDirectory(prefix="flq-check-") as scratch:
        yield unpack(packed.data, packed.hash, Path(scratch))


def _bundle(packed: Packed) -> Bundle:
    with zipfile.ZipFile(BytesIO(packed.data)) as archive:
        files = [File(entry.filename, entry.file_size) for entry in archive.infolist()]
    return Bundle(packed.hash.hex(), len(packed.data), sum(file.size for file in files), files)


def _look(
    project: Project, packed: Packed, folder: Path, *, may_import: bool
) -> tuple[list[EntryPoint], list[Problem]]:
    """The two halves of the app, and all that is wrong; they are loaded if nothing is known to be in the way."""
    from flq.apps.check import dependency_problems, module_problem, syntax_problems

    in_the_way = [*dependency_problems(project), *syntax_problems(folder, packed.files)]
    halves = {"serverapp": project.serverapp, "clientapp": project.clientapp}
    absent = {half: module_problem(project, component, folder) for half, component in halves.items()}
    problems = [*in_the_way, *(problem for problem in absent.values() if problem is not None)]
    if not may_import or in_the_way:
        return [
            EntryPoint(half, component, "failed" if absent[half] else "not tried") for half, component in halves.items()
        ], problems
    probes = {half: _Probe(half, folder) for half in halves if absent[half] is None}
    answers = _answers(probes)
    entry_points = []
    for half, component in halves.items():
        answer = answers.get(half)
        if isinstance(answer, Failure):
            told = answer.message.replace(str(folder), str(project.path))
            problems.append(_problem(told if component in told else f"{component}: {told}", answer.hint))
        provides = answer if isinstance(answer, list) else []
        entry_points.append(EntryPoint(half, component, "ok" if provides else "failed", provides))
    return entry_points, problems


def _problem(message: str, hint: str | None) -> Problem:
    from flq.apps.check import Problem

    return Problem(message, hint)


class _Probe:
    """A process that loads one half of an app, in an empty folder, as on a node."""

    def __init__(self, half: str, folder: Path) -> None:
        from flq.local.process import python, python_environment

        self._work = tempfile.TemporaryDirectory(prefix="flq-check-")
        self._process = subprocess.Popen(
            python("-m", "flq.apps.probe", half, str(folder)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=python_environment({}),
            cwd=self._work.name,
            process_group=0,
        )

    def answer(self, until: float) -> list[str] | Failure:
        """What this half provides, or why it cannot be loaded."""
        try:
            out, err = self._process.communicate(timeout=max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            return Failure(
                "timeout",
                f"importing it took longer than {IMPORT_SECONDS:.0f} s",
                "what takes long belongs into the functions of the app, not at the top of its modules",
            )
        try:
            told = json.loads(out)
        except ValueError:
            last = err.decode(errors="replace").strip().rpartition("\n")[2]
            return Failure(
                "crash", f"importing it ended the process ({_ending(self._process.returncode)})", last or None
            )
        return Failure("load", told["error"], told["hint"]) if "error" in told else list(told["provides"])

    def close(self) -> None:
        """End the process, and what the app has started in it."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with self._process:  # closes its pipes, and waits for its end
            pass
        self._work.cleanup()


def _answers(probes: Mapping[str, _Probe]) -> dict[str, list[str] | Failure]:
    until = time.monotonic() + IMPORT_SECONDS
    try:
        return {half: probe.answer(until) for half, probe in probes.items()}
    finally:
        for probe in probes.values():
            probe.close()


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def _failure(found: Picture) -> Failure | None:
    if not found.problems:
        return None
    count = len(found.problems)
    return Failure("app_check", "1 problem" if count == 1 else f"{count} problems", found.problems[0].hint)


def _print(found: Picture) -> None:
    bundle = found.bundle
    facts = [
        ("app", f"{found.app} {found.version}"),
        *((entry.half, _entry(entry)) for entry in found.entry_points),
        ("python", found.python),
        ("bundle", f"{len(bundle.files)} files, {size(bundle.unpacked)}, packed {size(bundle.size)}"),
        ("sha256", bundle.hash),
    ]
    for name, value in facts:
        click.echo(f"{click.style(f'{name:<10}', bold=True)} {value}")
    _section("files")
    print_table(("NAME", "SIZE"), [(file.name, size(file.size)) for file in bundle.files])
    if found.config:
        _section("config")
        print_table(
            ("KEY", "TYPE", "DEFAULT"), [(key, _kind(value), str(value)) for key, value in found.config.items()]
        )
    if found.dependencies:
        _section("dependencies")
        rows = [(told.requirement, told.installed or "no", told.met) for told in found.dependencies]
        print_table(("REQUIREMENT", "INSTALLED", "MET"), rows)


def _entry(entry: EntryPoint) -> str:
    return f"{entry.component}, {entry.state}" + (f": {', '.join(entry.provides)}" if entry.provides else "")


def _kind(value: ConfigValue) -> str:
    return type(value).__name__


def _section(title: str) -> None:
    click.echo(f"\n{click.style(title, bold=True)}")
