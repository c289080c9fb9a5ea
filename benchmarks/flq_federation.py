"""flq, driven as a person drives it: by its command, on an embedded federation in a home of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks import processes, workplace
from benchmarks.failure import BenchmarkError
from benchmarks.federation import Outcome, read_report

APP = workplace.APPS / "flq_rounds"
PATIENCE = 300.0
DURABLE = ("fsync", "synchronous_commit", "full_page_writes")
"""Settings of Postgres that are on, or the comparison would flatter."""


@dataclass(frozen=True, slots=True)
class FlqFederation:
    """The embedded federation below `home`, up or not."""

    home: Path

    def up(self, nodes: int) -> float:
        """Start it; returns the seconds until the command was back. All nodes are online then, or it is an error."""
        took = self._timed("up", "--nodes", str(nodes))
        online = self._json("nodes", "--online")
        if len(online) != nodes:
            raise BenchmarkError(f"`flq up` was back with {len(online)} of {nodes} nodes online")
        self.insist_on_durability()
        return took

    def down(self) -> float:
        """Stop it; returns the seconds until the command was back."""
        return self._timed("down")

    def roots(self) -> list[int]:
        """The process that all others of the federation descend from."""
        return [int(self._json("status")["pid"])]

    def run(
        self, *, rounds: int, nodes: int, floats: int, patience: float = PATIENCE, options: Sequence[str] = ()
    ) -> Outcome:
        """Run the app, typed → finished; `options` are further ones of `flq run`."""
        name = f"bench-{time.time_ns()}"
        report = self.home.parent / f"{name}.json"
        config = f'rounds={rounds} nodes={nodes} floats={floats} report="{report}"'
        typed = time.time()
        self._command("run", str(APP), "--wait", "--name", name, "--run-config", config, *options, patience=patience)
        row = self._json("show", name)["run"]
        finished = datetime.fromisoformat(row["finished_at"]).timestamp()
        return Outcome(typed, finished, read_report(report, rounds=rounds, nodes=nodes))

    def end(self) -> None:
        """Stop it, and whatever a failed `flq down` has left."""
        try:
            self._command("down")
        finally:
            processes.end(processes.marked("FLQ_HOME", str(self.home)))

    def insist_on_durability(self) -> None:
        """Raises `BenchmarkError` if Postgres would lose what it has committed."""
        columns = ", ".join(f"current_setting('{name}') as {name}" for name in DURABLE)
        (found,) = self._json("sql", f"select {columns}")
        if set(found.values()) != {"on"}:
            raise BenchmarkError(f"Postgres would lose what it has committed: {found}")

    def _timed(self, *arguments: str) -> float:
        started = time.perf_counter()
        self._command(*arguments)
        return time.perf_counter() - started

    def _json(self, *arguments: str) -> Any:
        return json.loads(self._command(*arguments, "--json"))["data"]

    def _command(self, *arguments: str, patience: float = PATIENCE) -> str:
        command = [*_flq(), *arguments]
        try:
            done = subprocess.run(
                command, env=self._environment(), capture_output=True, text=True, timeout=patience, check=False
            )
        except subprocess.TimeoutExpired as exc:
            raise BenchmarkError(f"`flq {' '.join(arguments)}` is not back after {patience:.0f} s") from exc
        if done.returncode:
            raise BenchmarkError(f"`flq {' '.join(arguments)}` failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def _environment(self) -> dict[str, str]:
        others = {name: value for name, value in os.environ.items() if not name.startswith("FLQ_")}
        return {**others, "FLQ_HOME": str(self.home), "NO_COLOR": "1"}


@contextmanager
def federation() -> Iterator[FlqFederation]:
    """A federation with an empty home, not up yet; nothing of it is left after the block."""
    with workplace.folder("flq") as folder:
        found = FlqFederation(folder / "home")
        try:
            yield found
        finally:
            found.end()


def _flq() -> list[str]:
    """The command: as it was installed, else from this checkout."""
    installed = Path(sys.executable).with_name("flq")
    return [str(installed)] if installed.exists() else [sys.executable, "-m", "flq"]
