"""A federation as benchmarks see it, whichever framework runs it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from benchmarks.failure import BenchmarkError


@dataclass(frozen=True, slots=True)
class Outcome:
    """When somebody typed the command, when the run had finished, and what the app wrote; seconds since the epoch."""

    typed: float
    finished: float
    report: dict[str, Any]

    @property
    def typed_to_main(self) -> float:
        """From the command to the first line of the app's `main`."""
        return float(self.report["entered"]) - self.typed

    @property
    def typed_to_finished(self) -> float:
        """From the command to the end of the run, as the server has recorded it."""
        return self.finished - self.typed

    @property
    def rounds(self) -> list[float]:
        """How long each round took: from its start to the start of the next, of the last one to the end."""
        return [after - before for before, after in pairwise([*self.report["starts"], self.report["ended"]])]


class Federation(Protocol):
    """A federation on this machine that was not up yet, with nothing in it."""

    def up(self, nodes: int) -> float:
        """Start it; returns the seconds until all nodes were online."""

    def roots(self) -> Sequence[int]:
        """The pids of the processes that all others of the federation descend from."""

    def run(self, *, rounds: int, nodes: int, floats: int) -> Outcome:
        """Run the app of the benchmark `rounds`, as a person would."""


def read_report(path: Path, *, rounds: int, nodes: int) -> dict[str, Any]:
    """Read what the app wrote. Raises `BenchmarkError` if that many rounds on all nodes would leave something else."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise BenchmarkError(f"the app has finished without its report: {exc}") from exc
    expected = [nodes] * rounds
    replies = (found["train_replies"], found["evaluate_replies"])
    if replies != (expected, expected) or not found["model_kept"]:
        raise BenchmarkError(f"the work was not done: {rounds} rounds on {nodes} nodes, but {found}")
    return found
