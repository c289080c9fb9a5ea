"""Try the mutants: `python -m tests.mutation [--only NAME] [--sample N]`. See README.md beside this file."""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from flq.local.process import python, python_environment
from tests.mutation import functions, statements
from tests.mutation.mutants import Mutant, numbered

TESTS = (
    "tests/integration/test_link_tasks.py",
    "tests/integration/test_link_queue.py",
    "tests/integration/test_link_results.py",
    "tests/unit/test_cursors.py",
    "tests/integration/test_link_shares.py",
    "tests/integration/test_link_edges.py",
    "tests/integration/test_link_quotas.py",
    "tests/integration/test_link_states.py",
    "tests/concurrency/test_races.py",
    "tests/plans/test_plans.py",
    "tests/concurrency/test_overlaps.py",
    "tests/concurrency/test_task_machine.py",
)
"""Where the tests are that a mutant has to get by."""

ENVIRONMENT = {"HYPOTHESIS_PROFILE": "short", "FLQ_OVERLAPS": "200", "COVERAGE_CORE": "ctrace"}
"""Shorter than in `make test`: each mutant runs them again."""

HERE = Path(__file__).parent
SURVIVORS = HERE / "survivors.txt"
SCORE = HERE / "score.json"
FLOOR = 0.8
"""The share of mutants that tests have to notice."""

NOT_SQL = ("psycopg.errors.SyntaxError", "psycopg.errors.Undefined", "psycopg.errors.Ambiguous")
"""A mutant that PostgreSQL cannot read is none."""

LEARNING_SECONDS = 1800.0
"""How long all tests may take, watched, on the originals."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a mutant. `killer` is a test's name, or None if it survived."""

    mutant: Mutant
    killer: str | None
    how: str = ""
    seconds: float = 0.0

    @property
    def is_sql_error(self) -> bool:
        """Whether it was never run: PostgreSQL could not read it."""
        return self.mutant.is_sql and self.how.startswith(NOT_SQL)


@dataclass(slots=True)
class Knowledge:
    """What is known of the tests: how long each takes, what it runs, and how many mutants it has killed."""

    tests: Mapping[str, Any]
    kills: Counter[tuple[str, str]] = field(default_factory=Counter)

    def of(self, mutant: Mutant) -> list[str]:
        """The tests that run the mutant's place, the likeliest and the shortest first."""
        module = mutant.place.partition(".")[0]
        places = {mutant.place} if mutant.is_sql else {f"{module}:{line}" for line in mutant.lines}
        found = [name for name, test in self.tests.items() if places & set(test["runs"])]
        return sorted(found, key=lambda name: self.tests[name]["seconds"] / self._chance(mutant.place, name))

    def learn(self, verdict: Verdict) -> None:
        """What has killed a mutant is likely to kill another, most of all in the same place."""
        if verdict.killer is not None:
            self.kills["", verdict.killer] += 1
            self.kills[verdict.mutant.place, verdict.killer] += 1

    def _chance(self, place: str, test: str) -> float:
        return 1 + self.kills["", test] + 10 * self.kills[place, test]

    def seconds(self, tests: Sequence[str]) -> float:
        """When some tests count as hanging."""
        return 30 + 6 * sum(float(self.tests[name]["seconds"]) for name in tests)


class Worker:
    """A pytest that runs tests on mutants, and the socket to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        options = ["-p", "tests.mutation.plugin", "-p", "no:cacheprovider"]
        environment = {**ENVIRONMENT, "FLQ_MUTATION": str(theirs.fileno())}
        self._process = subprocess.Popen(
            python("-m", "pytest", *options, *TESTS),
            env=python_environment(environment), pass_fds=[theirs.fileno()], stdout=subprocess.DEVNULL,
        )  # fmt: skip
        theirs.close()
        self._lines = ours.makefile("rw")
        self._socket = ours

    def ask(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Give an order, and wait for what becomes of it."""
        self._lines.write(json.dumps(order) + "\n")
        self._lines.flush()
        answer = self._lines.readline()
        if not answer:
            raise RuntimeError(f"the tests cannot be run: pytest has ended with {self._process.wait()}")
        found: dict[str, Any] = json.loads(answer)
        return found

    def close(self) -> None:
        """Let it go."""
        self._lines.close()
        self._socket.close()
        self._process.wait()


class Trial:
    """Tries mutants, several at a time."""

    def __init__(self, chosen: Sequence[tuple[int, Mutant]], progress: Progress) -> None:
        self._left: SimpleQueue[tuple[int, Mutant]] = SimpleQueue()
        for pair in chosen:
            self._left.put(pair)
        self._progress = progress
        self._bar = progress.add_task("learning what the tests run", total=len(chosen), alive=0)
        self._alive = 0
        self.verdicts: list[Verdict] = []

    def run(self, workers: Sequence[Worker]) -> None:
        """Learn of the tests, then try until none is left."""
        learned = workers[0].ask({"learn": True, "seconds": LEARNING_SECONDS})
        if "tests" not in learned:
            sys.exit(f"the tests do not end without a mutant: {learned['killer']} {learned['how']}")
        failed = {name: test["failed"] for name, test in learned["tests"].items() if test["failed"]}
        if failed:
            sys.exit("\n".join(f"{name} fails without a mutant:\n{why}" for name, why in failed.items()))
        knowledge = Knowledge(learned["tests"])
        with ThreadPoolExecutor(len(workers)) as pool:
            works = [pool.submit(self._work, worker, knowledge) for worker in workers]
            try:
                for done in as_completed(works):
                    done.result()
            except BaseException:
                self._left = SimpleQueue()  # the others end with what they are at
                raise

    def _work(self, worker: Worker, knowledge: Knowledge) -> None:
        while True:
            try:
                number, mutant = self._left.get_nowait()
            except Empty:
                return
            tests = knowledge.of(mutant)
            found: dict[str, Any] = {"killer": None}
            if tests:
                found = worker.ask({"mutant": number, "tests": tests, "seconds": knowledge.seconds(tests)})
            verdict = Verdict(mutant, found["killer"], found.get("how", ""), found.get("seconds", 0.0))
            knowledge.learn(verdict)
            self._tell(verdict)

    def _tell(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)
        console = self._progress.console
        if verdict.killer is None:
            self._alive += 1
            console.print(f"survived: {verdict.mutant.label}", markup=False, soft_wrap=True)
        elif not console.is_terminal:  # there is no bar to see
            text = f"killed by {verdict.killer} ({verdict.seconds:.1f} s): {verdict.mutant.label}"
            console.print(text, markup=False, soft_wrap=True)
        self._progress.update(self._bar, advance=1, description=verdict.mutant.place, alive=self._alive)


def listed() -> dict[str, str]:
    """The survivors that are known, with the reason of each."""
    found: dict[str, str] = {}
    label = ""
    for line in SURVIVORS.read_text(encoding="utf-8").splitlines():
        if line.startswith(" "):
            found[label] = f"{found[label]} {line.strip()}".strip()
        elif line and not line.startswith("#"):
            label = line
            found[label] = ""
    return found


def score(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """How many were tried and killed, in all, of SQL and of Python, and in each place."""
    rows: dict[str, dict[str, Any]] = {}
    for verdict in verdicts:
        kind = "SQL" if verdict.mutant.is_sql else "Python"
        for name in ("all", kind, verdict.mutant.place):
            row = rows.setdefault(name, {"mutants": 0, "killed": 0})
            row["mutants"] += 1
            row["killed"] += verdict.killer is not None
    for row in rows.values():
        row["share"] = round(row["killed"] / row["mutants"], 3)
    return rows


def show(rows: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    """Print a score as a table."""
    table = Table("place", "mutants", "killed", "share")
    for name in sorted(rows, key=lambda name: (":" in name, name != "all", name)):
        row = rows[name]
        table.add_row(name, str(row["mutants"]), str(row["killed"]), f"{row['share']:.0%}")
    console.print(table)


def main(arguments: Sequence[str]) -> int:
    """Print what survives, and the share that does not. Exit code 1 if that is too low, or one has no reason."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--only", metavar="NAME", help="mutants whose label contains NAME")
    parser.add_argument("--sample", metavar="N", type=int, help="N of them at random")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--workers", metavar="N", type=int, default=os.cpu_count(), help="how many at a time")
    parser.add_argument("--unlisted", action="store_true", help="only those that have no reason in survivors.txt")
    parser.add_argument("--list", action="store_true", help="name them, and try none")
    given = parser.parse_args(arguments)

    everything = list(enumerate(numbered([*statements.mutants(), *functions.mutants()])))
    chosen = [(number, mutant) for number, mutant in everything if not given.only or given.only in mutant.label]
    if given.unlisted:
        chosen = [(number, mutant) for number, mutant in chosen if mutant.label not in listed()]
    if given.sample is not None:
        chosen = random.Random(given.seed).sample(chosen, min(given.sample, len(chosen)))  # noqa: S311 - repeatable
    console = Console()
    if given.list or not chosen:
        for _, mutant in chosen:
            console.print(mutant.label, markup=False, soft_wrap=True)
        return int(not chosen)
    verdicts = tried(chosen, given.workers, console)
    rows = score(verdicts)
    show(rows, console)
    if len(chosen) == len(everything):
        SCORE.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return judged(verdicts, rows["all"]["share"], console)


def tried(chosen: Sequence[tuple[int, Mutant]], workers: int, console: Console) -> list[Verdict]:
    """Try mutants; those that PostgreSQL cannot read are left out."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    alive = TextColumn("{task.fields[alive]} alive")
    at_work = [Worker() for _ in range(min(workers, len(chosen)))]
    try:
        with Progress(*columns, alive, console=console) as progress:
            trial = Trial(chosen, progress)
            trial.run(at_work)
    finally:
        for worker in at_work:
            worker.close()
    return [verdict for verdict in trial.verdicts if not verdict.is_sql_error]


def judged(verdicts: Sequence[Verdict], share: float, console: Console) -> int:
    """Say which survivors have no reason, and which reasons no survivor."""
    known = listed()
    alive = {verdict.mutant.label for verdict in verdicts if verdict.killer is None}
    dead = {verdict.mutant.label for verdict in verdicts if verdict.killer is not None}
    for label in sorted(alive - known.keys()):
        console.print(f"not in {SURVIVORS.name}: {label}", markup=False, soft_wrap=True)
    for label in sorted(dead & known.keys()):
        console.print(f"in {SURVIVORS.name}, but killed: {label}", markup=False, soft_wrap=True)
    return int(bool(alive - known.keys()) or share < FLOOR)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
