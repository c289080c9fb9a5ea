"""The `flq` command as people use it: a process of its own, with a home of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from flq.cli.main import main
from flq.local.process import python_environment
from tests.acceptance.fork_server import fork_server
from tests.integration.local_home import processes

PATIENCE = 60.0

QUESTIONS = frozenset({"ls", "show", "nodes", "status", "sql", "explain"})
"""Commands that only look. A test asks many times; half a second to start a process each time is not what it tests."""


@dataclass(frozen=True)
class Flq:
    """Runs `flq` with `home` as its home."""

    home: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    python: str = sys.executable

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a person who has set FLQ_HOME and nothing else of flq's."""
        others = {name: None for name in os.environ if name.startswith("FLQ_")}
        return python_environment({**others, "FLQ_HOME": str(self.home), "NO_COLOR": "1", **self.variables})

    @property
    def _can_be_forked(self) -> bool:
        """Whether a process of this Python would do: one that has started already, with the variables of Python set."""
        return self.python == sys.executable and not any(name.startswith("PYTHON") for name in self.variables)

    def start(self, *arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
        """Start `flq ARGUMENTS`, its output in pipes."""
        return subprocess.Popen(
            [self.python, "-P", "-m", "flq", *map(str, arguments)],
            env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
        )  # fmt: skip

    def __call__(self, *arguments: str | Path, code: int = 0, **options: Any) -> str:
        """What `flq ARGUMENTS` prints on stdout; it must exit with `code`."""
        done = self.ended(*arguments, **options)
        what = f"flq {' '.join(map(str, arguments))}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == code, what
        return done.stdout

    def ended(self, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """`flq ARGUMENTS`, which has ended; killed after `PATIENCE`."""
        if self._can_be_forked and not options:
            return fork_server().run([*map(str, arguments)], environment=self.environment, timeout=PATIENCE)
        process = self.start(*arguments, **options)
        try:
            out, err = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def json(self, *arguments: str | Path, code: int = 0) -> Any:
        """The data of `flq ARGUMENTS --json`."""
        ask = self._asked if arguments[0] in QUESTIONS and self.python == sys.executable else self
        envelope = json.loads(ask(*arguments, "--json", code=code))
        assert envelope["schema_version"] == 1
        assert envelope["status"] == ("ok" if envelope["error"] is None else "error")
        return envelope["data"] if envelope["error"] is None else envelope["error"]

    def sql(self, query: str) -> list[dict[str, Any]]:
        """The rows of a query."""
        rows: list[dict[str, Any]] = self.json("sql", query)
        return rows

    def _asked(self, *arguments: str | Path, code: int) -> str:
        """The same as a call, in this process."""
        variables = {**dict.fromkeys(os.environ), **self.environment}
        found = CliRunner(env=variables).invoke(main, [*map(str, arguments)], catch_exceptions=False)
        assert found.exit_code == code, f"flq {' '.join(map(str, arguments))}: {found.exit_code}\n{found.output}"
        return found.stdout

    def processes(self) -> list[int]:
        """The pids of all that runs for this home."""
        return processes(self.home)


def python_for_others() -> str | None:
    """A Python of this version that every user can start: the one of this environment may be below root's home."""
    for candidate in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        with suppress(OSError):
            if not subprocess.run([candidate, "-c", ""], user="nobody", check=False).returncode:
                return candidate
    return None


def open_python() -> str:
    """The same, for tests that make no sense without."""
    return python_for_others() or pytest.skip("no Python here that another user could start")
