"""How much of flq/link its own tests run: `make coverage` prints it, and fails below 95 % of lines or of branches.

Processes that the tests start are counted too (`patch` in `[tool.coverage.run]`); one that a test kills writes nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from glob import glob
from pathlib import Path
from typing import Any, Final

from flq.local.process import python, python_environment

FLOOR: Final = 95.0

TESTS: Final = (
    "tests/unit/test_cursors.py",
    "tests/unit/test_refusals.py",
    *sorted(glob("tests/integration/test_link_*.py")),  # noqa: PTH207 - names below the root, as pytest prints them
    "tests/concurrency",
    "tests/conformance",
    "tests/plans",
    "tests/migrations",
)

ENVIRONMENT: Final = {"HYPOTHESIS_PROFILE": "short", "FLQ_OVERLAPS": "200"}
"""Coverage makes each step slower; what a step runs shows after a few of them."""


def main(arguments: list[str]) -> int:
    """Run the tests under coverage, print the table; exit code 1 if a test fails or a share is too low."""
    with tempfile.TemporaryDirectory(prefix="flq-coverage-") as folder:
        environment = python_environment({**ENVIRONMENT, "COVERAGE_FILE": str(Path(folder) / "data")})
        failed = _coverage(environment, "run", "-m", "pytest", *arguments, *TESTS)
        _coverage(environment, "combine", "--quiet", folder)
        _coverage(environment, "report", "--include=flq/link/*", "--show-missing", "--skip-covered")
        report = Path(folder) / "report.json"
        _coverage(environment, "json", "--quiet", "--include=flq/link/*", "-o", str(report))
        return _judged(json.loads(report.read_text())["totals"]) or failed


def _coverage(environment: dict[str, str], *arguments: str) -> int:
    return subprocess.run(python("-m", "coverage", *arguments), env=environment, check=False).returncode


def _judged(totals: dict[str, Any]) -> int:
    lines = 100 * totals["covered_lines"] / totals["num_statements"]
    branches = 100 * totals["covered_branches"] / totals["num_branches"]
    print(f"flq/link: {lines:.1f} % of lines, {branches:.1f} % of branches; at least {FLOOR:.0f} % of each")  # noqa: T201
    return int(min(lines, branches) < FLOOR)


if __name__ == "__main__":
    os.chdir(Path(__file__).parents[1])
    sys.exit(main(sys.argv[1:]))
