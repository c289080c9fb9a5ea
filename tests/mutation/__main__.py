"""Try every mutant: `python -m tests.mutation [FROM [TO]]`. Exit code 1 if one survives that is not listed."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flq.local.process import python, python_environment
from tests.mutation.mutants import Mutant, mutants

TESTS = (
    "tests/integration/test_link_tasks.py",
    "tests/integration/test_link_shares.py",
    "tests/integration/test_link_edges.py",
    "tests/concurrency/test_races.py",
    "tests/plans/test_plans.py",
    "tests/concurrency/test_task_machine.py",
    "tests/concurrency/test_overlaps.py",
)
SURVIVORS = Path(__file__).with_name("survivors.txt")
AT_ONCE = 2
TIMEOUT = 240


def killed(number: int) -> bool:
    """Whether a test notices."""
    command = python("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "tests.mutation.plugin", *TESTS)
    try:
        done = subprocess.run(
            [*command, "--timeout=60"],
            env=python_environment({"FLQ_MUTANT": str(number)}),
            timeout=TIMEOUT, capture_output=True, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return True
    return done.returncode != 0


def main(arguments: list[str]) -> int:
    """Print what survives, and the share that does not."""
    first, last = (int(arguments[n]) if len(arguments) > n else None for n in (0, 1))
    chosen = list(enumerate(mutants()))[first:last]
    listed = SURVIVORS.read_text(encoding="utf-8") if SURVIVORS.exists() else ""
    survivors: list[Mutant] = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for (number, mutant), dead in zip(chosen, pool.map(killed, [n for n, _ in chosen]), strict=True):
            if not dead:
                survivors.append(mutant)
            print(f"{number:4} {'killed  ' if dead else 'SURVIVED'} {mutant.label}", flush=True)  # noqa: T201
    share = 1 - len(survivors) / len(chosen)
    print(f"{len(chosen)} mutants, {share:.0%} killed")  # noqa: T201
    return int(any(mutant.label not in listed for mutant in survivors))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
