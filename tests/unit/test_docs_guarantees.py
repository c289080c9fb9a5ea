"""docs/guarantees.md names a test for each promise."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
PROMISES = re.findall(r"^\| (.+) \| ((?:`[\w/]+\.py::\w+`(?:, )?)+) \|$", PAGE, re.MULTILINE)


def names_in(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {found.name for found in ast.walk(tree) if isinstance(found, ast.FunctionDef)}


@pytest.mark.parametrize(("promise", "tests"), PROMISES)
def test_each_promise_is_proved_by_tests_that_exist(promise: str, tests: str):
    for file, name in re.findall(r"`([\w/]+\.py)::(\w+)`", tests):
        assert name.startswith("test_"), promise
        assert name in names_in(ROOT / "tests" / file), promise


def test_each_row_is_a_promise():
    table = PAGE.partition("## What is promised")[2].partition("## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(PROMISES) == len(rows) - 2  # its head
