"""docs/tutorial.md, typed line by line into a shell in an empty folder.

In its `console` blocks a line with `$ ` is a command, and the lines below it are what it prints: `...` stands for any
lines, or for any part of a line; blanks are counted as one. No lines mean that the output does not matter. A command
may fail only if the next one is `echo $?`. A block of a second terminal starts a process that goes on, once it has
printed what it must, until `^C`. A `diff` block is an edit.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.acceptance.flq_command import PATIENCE, Flq
from tests.waiting import eventually

pytestmark = pytest.mark.acceptance

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"

BLOCK = re.compile(r"^```(\w+)(?: ([^\n]*))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass
class Command:
    """Something that is typed, and what is printed then."""

    text: str
    terminal: str
    expected: list[str] = field(default_factory=list)

    def check(self, printed: str) -> None:
        wanted = "\n".join(self.expected)
        assert self.is_printed(printed), f"$ {self.text}\n{printed}\nis not\n{wanted}"

    def is_printed(self, printed: str) -> bool:
        pattern = "".join(r"(?:.*\n)*?" if line == "..." else f"{_line(line)}\n" for line in self.expected)
        text = "".join(f"{_blanks(line)}\n" for line in printed.splitlines())
        return not self.expected or re.fullmatch(pattern, text) is not None


@dataclass(frozen=True)
class Edit:
    """Lines of a file that are replaced by others."""

    file: str
    old: str
    new: str

    def make(self, folder: Path) -> None:
        path = folder / self.file
        text = path.read_text()
        assert text.count(self.old) == 1, f"{self.file} has these lines {text.count(self.old)} times:\n{self.old}"
        path.write_text(text.replace(self.old, self.new))


def _line(line: str) -> str:
    return ".*".join(map(re.escape, _blanks(line).split("...")))


def _blanks(line: str) -> str:
    return re.sub(r"\s+", " ", line.strip())


def steps(text: str) -> Iterator[Command | Edit]:
    for kind, terminal, content in BLOCK.findall(text):
        if kind == "console":
            yield from commands(content.splitlines(), terminal)
        elif kind == "diff":
            yield edit(content.splitlines())


def commands(lines: list[str], terminal: str) -> list[Command]:
    found: list[Command] = []
    for line in lines:
        if line.startswith("$ ") or line == "^C":
            found.append(Command(line.removeprefix("$ "), terminal))
        else:
            found[-1].expected.append(line)
    return found


def edit(lines: list[str]) -> Edit:
    old = "".join(f"{line[1:]}\n" for line in lines[1:] if line[0] in " -")
    new = "".join(f"{line[1:]}\n" for line in lines[1:] if line[0] in " +")
    return Edit(lines[0].removeprefix("--- "), old, new)


class Terminals:
    """A shell that waits for each command, and others in which one goes on."""

    def __init__(self, flq: Flq, folder: Path) -> None:
        programs = folder / "programs"
        programs.mkdir()
        for name, arguments in {"flq": '-P -m flq "$@"', "python": '"$@"'}.items():
            (programs / name).write_text(f"#!/bin/sh\nexec {sys.executable} {arguments}\n")
            (programs / name).chmod(0o755)
        self.work = folder / "work"
        self.work.mkdir()
        self._environment = {**flq.environment, "PATH": f"{programs}:{os.defpath}"}
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._output = folder
        self._code = 0

    def type(self, command: Command, *, may_fail: bool) -> None:
        if command.text == "^C":
            self._interrupt(command.terminal)
        elif command.terminal:
            self._start(command)
        else:
            self._run(command, may_fail=may_fail)

    def _run(self, command: Command, *, may_fail: bool) -> None:
        done = subprocess.run(
            ["sh", "-c", f"(exit {self._code})\n{command.text}"], env=self._environment, cwd=self.work, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE, check=False,
        )  # fmt: skip
        self._code = done.returncode
        assert may_fail or done.returncode == 0, f"$ {command.text}\n{done.stdout}"
        command.check(done.stdout)

    def _start(self, command: Command) -> None:
        output = self._output / command.terminal
        with output.open("w") as file:
            self._running[command.terminal] = subprocess.Popen(
                ["sh", "-c", f"exec {command.text}"], env=self._environment, cwd=self.work, text=True,
                stdin=subprocess.DEVNULL, stdout=file, stderr=file, process_group=0,
            )  # fmt: skip
        eventually(lambda: command.is_printed(output.read_text()), what=f"what `{command.text}` prints")

    def _interrupt(self, terminal: str) -> None:
        process = self._running.pop(terminal)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(PATIENCE) in {0, 130}

    def close(self) -> None:
        for process in self._running.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_the_tutorial_is_true(cold: Flq, tmp_path: Path):
    todo = list(steps(TUTORIAL.read_text(encoding="utf-8")))
    assert len(todo) > 20
    terminals = Terminals(cold, tmp_path)
    try:
        for step, then in zip(todo, [*todo[1:], None], strict=True):
            if isinstance(step, Edit):
                step.make(terminals.work)
            else:
                terminals.type(step, may_fail=isinstance(then, Command) and then.text == "echo $?")
    finally:
        terminals.close()
    assert not cold.processes()


def test_the_typist_notices_what_is_not_as_it_is_written():
    (command,) = commands(["$ flq ls", "RUN  APP", "...", "one ... ok", "..."], "")
    assert command.is_printed("RUN APP\none  5/5 ok\n")
    assert command.is_printed("RUN     APP\ntwo\nthree\none x ok\nfour\n")
    for printed in ("", "RUN APP\n", "RUN\none x ok\n", "RUN APP\none x failed\n", "more\nRUN APP\none x ok\n"):
        assert not command.is_printed(printed)
        with pytest.raises(AssertionError, match="flq ls"):
            command.check(printed)
