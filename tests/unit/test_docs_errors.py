"""docs/errors.md names a test for each mistake, and each test of a mistake; its exit codes are those of the errors."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from flq import errors

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
TESTS = ROOT / "tests" / "acceptance"

ROWS = [line for line in PAGE.splitlines() if "test_mistakes_" in line]
NAMED = re.compile(r"`(test_mistakes_\w+\.py)::(test_\w+)` \|$")


def names_in(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {found.name for found in tree.body if isinstance(found, ast.FunctionDef) and found.name.startswith("test_")}


@pytest.mark.parametrize("row", ROWS, ids=[row.split("|")[1].strip() for row in ROWS])
def test_each_row_has_an_exit_code_and_a_test_that_exists(row: str):
    mistake, seen, code, _ = (cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:5])
    assert mistake
    assert seen
    assert code in {"0", "1", "2", "3", "4", "5", "130"}
    named = NAMED.search(row)
    assert named is not None
    file, name = named.groups()
    assert name in names_in(TESTS / file)


def test_each_test_of_a_mistake_has_a_row():
    named = {found.groups() for row in ROWS if (found := NAMED.search(row))}
    there = {(file.name, name) for file in TESTS.glob("test_mistakes_*.py") for name in names_in(file)}
    assert there == named


def test_the_codes_of_the_envelope_are_those_of_the_errors():
    known = {kind.code: kind.exit_code for kind in vars(errors).values() if hasattr(kind, "exit_code")}
    known |= {"run_failed": 1, "run_stopped": 1}  # of `flq.cli.views.failure_of`
    rows = [
        [cell.strip() for cell in line.split("|")[1:4]]
        for line in PAGE.splitlines()
        if re.match(r"\| \d+ \|", line) and "test_" not in line
    ]
    assert [row[0] for row in rows] == ["0", "1", "2", "3", "4", "5", "130"]
    for code, _, named in rows:
        for name in re.findall(r"`(\w+)`", named):
            assert known[name] == int(code), name
