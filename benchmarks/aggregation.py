"""The benchmark `aggregation`: FedAvg of flq and of Flower (flwr) on the same replies, without a federation.

Each side is a process in its own environment that holds the same replies, and is asked to aggregate them by turns.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks import workplace
from benchmarks.failure import BenchmarkError
from benchmarks.harness import Benchmark, Cell, Goal, Measure, Metric, Side, Values

MODELS = 10
ARRAYS = 20
MEGABYTES = 100
QUICK_MEGABYTES = 20
TIMES = 5
THREADS = (1, 2)
SAME = 1e-6
"""How far apart the sums of both new models may be, relative to the sum."""

AGENT = Path(__file__).with_name("aggregation_agent.py")
METRICS = (
    Metric("seconds", "one aggregation", "s"),
    Metric("memory", "memory that it needs, replies included", "MB"),
)
_MEMORY_CELL = "memory"


def benchmark(*, quick: bool, peers: bool) -> Benchmark:
    """The benchmark."""
    megabytes = QUICK_MEGABYTES if quick else MEGABYTES
    cells = [_cell(_named(threads), threads, megabytes, "time", peers=peers) for threads in THREADS]
    return Benchmark(
        name="aggregation",
        title=f"FedAvg of {MODELS} replies of {megabytes} MB each, float32, in {ARRAYS} arrays",
        metrics=METRICS,
        goals=(
            Goal(_named(1), "seconds", ratio=1.5),
            Goal(_named(2), "seconds", ratio=2.5),
            Goal(_MEMORY_CELL, "memory", ratio=5),
        ),
        cells=[*cells, _cell(_MEMORY_CELL, 1, megabytes, "memory", peers=peers)],
        warmups=1,
        settings={
            "models": MODELS,
            "arrays": ARRAYS,
            "megabytes": megabytes,
            "aggregations_of_a_repeat": TIMES,
            "flq": "FedAvg(threads=1 or 2), accumulating in float32; NaN and infinities are looked for in every reply",
            "flwr": "FedAvg; one thread, in all cells",
            "time": "replies are in memory on both sides, as each side holds them",
            "memory": "replies come in as in a run: flwr receives them whole, flq reads arrays when they are used",
        },
    )


def _named(threads: int) -> str:
    return f"{threads} thread" + ("s" if threads > 1 else "")


def _cell(name: str, threads: int, megabytes: int, question: str, *, peers: bool) -> Cell:
    sums = Sums()
    sides: dict[str, Side] = {"flq": partial(_side, "flq", threads, megabytes, question, sums)}
    if peers:
        sides["flwr"] = partial(_side, "flwr", 1, megabytes, question, sums)
    return Cell(name, sides)


class Sums:
    """What the elements of each side's model add up to: all make the same model of the same replies."""

    def __init__(self) -> None:
        self._first: float | None = None

    def check(self, name: str, total: float) -> None:
        """Raise `BenchmarkError` if it is another sum than that of the first model."""
        self._first = total if self._first is None else self._first
        if abs(total - self._first) > SAME * abs(self._first):
            raise BenchmarkError(f"the model of {name} is another one: {total} in all, and not {self._first}")


class Agent:
    """A process that aggregates."""

    def __init__(self, process: subprocess.Popen[str], name: str, sums: Sums) -> None:
        self._process = process
        self._name = name
        self._sums = sums

    def ask(self, question: str) -> Mapping[str, float]:
        """Aggregate once. Raises `BenchmarkError` if the process has ended, or the model is another than before."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{question}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise BenchmarkError(f"the aggregation by {self._name} has failed; its error stands above") from None
        line = self._process.stdout.readline()
        if not line:
            raise BenchmarkError(f"the aggregation by {self._name} has failed; its error stands above")
        found: dict[str, float] = json.loads(line)
        self._sums.check(self._name, found["sum"])
        return found


@contextmanager
def _side(name: str, threads: int, megabytes: int, question: str, sums: Sums) -> Iterator[Measure]:
    python = sys.executable if name == "flq" else str(workplace.PEERS / "bin" / "python")
    with workplace.folder(f"aggregation-{name}") as home:
        process = subprocess.Popen(
            [python, "-P", AGENT, name, *map(str, (MODELS, ARRAYS, megabytes * 1_000_000, threads))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=home,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(home),
                "FLWR_HOME": str(home),
                "FLWR_TELEMETRY_ENABLED": "0",
                "TMPDIR": str(home),
                **({"PYTHONPATH": str(workplace.ROOT)} if name == "flq" else {}),
                # what is let go goes back to the system at once, so that memory is what is in use
                **({"MALLOC_MMAP_THRESHOLD_": "65536"} if question == "memory" else {}),
            },
        )
        try:
            yield partial(_measure, Agent(process, name, sums), question)
        finally:
            process.kill()
            process.communicate()


def _measure(agent: Agent, question: str) -> Values:
    if question == "time":
        return {"seconds": [agent.ask("time")["seconds"] for _ in range(TIMES)]}
    return {"memory": [agent.ask("memory")["bytes"] / 1e6]}
