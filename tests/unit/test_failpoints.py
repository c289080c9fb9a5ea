"""Fail-points: nothing unless they are armed; then the process dies or freezes there, at the pass that was ordered."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # it has no types of its own
import pytest

from flq import failpoints
from flq.errors import UsageError
from flq.failpoints import POINTS
from flq.local.process import python, python_environment
from flq.settings import FAILPOINTS
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
POINT = "serverapp.after-push"
PASSES = f"""
import sys
from flq.failpoints import reach
for number in range(1, 6):
    sys.stdout.write(f"{{number}}\\n")
    sys.stdout.flush()
    reach({POINT!r})
"""


def process(value: str | None) -> subprocess.Popen[str]:
    """A process that passes a point five times, and says before which pass it is."""
    environment = python_environment({FAILPOINTS: value})
    return subprocess.Popen(python("-c", PASSES), env=environment, stdout=subprocess.PIPE, text=True)


def outcome(value: str | None) -> tuple[int, list[str]]:
    found = process(value)
    out, _ = found.communicate(timeout=30)
    return found.returncode, out.split()


@contextmanager
def frozen(value: str) -> Iterator[subprocess.Popen[str]]:
    found = process(value)
    try:
        eventually(lambda: psutil.Process(found.pid).status() == psutil.STATUS_STOPPED, what="the process to freeze")
        yield found
    finally:
        found.kill()
        found.wait()
        assert found.stdout is not None
        found.stdout.close()


def test_unarmed_they_do_nothing():
    assert outcome(None) == (0, ["1", "2", "3", "4", "5"])
    assert failpoints.armed(None) is failpoints.armed("")


def test_a_process_kills_itself_at_the_pass_that_was_ordered():
    assert outcome(f"supernode.claimed=kill@1, {POINT}=kill@3") == (-signal.SIGKILL, ["1", "2", "3"])


def test_a_frozen_process_goes_on_when_it_is_told_to():
    with frozen(f"{POINT}=freeze@2") as found:
        found.send_signal(signal.SIGCONT)
        out, _ = found.communicate(timeout=30)
        assert (found.returncode, out.split()) == (0, ["1", "2", "3", "4", "5"])


def test_an_order_in_a_folder_is_carried_out_once(tmp_path: Path):
    (tmp_path / POINT).write_text("kill@2")
    assert outcome(str(tmp_path)) == (-signal.SIGKILL, ["1", "2"])
    (taken,) = tmp_path.iterdir()
    assert taken.name.startswith(f"{POINT}.")
    assert outcome(str(tmp_path)) == (0, ["1", "2", "3", "4", "5"])


def test_an_order_may_come_while_the_process_runs(tmp_path: Path):
    (tmp_path / POINT).write_text("freeze@1")
    with frozen(str(tmp_path)) as found:
        draft = tmp_path / ".draft"
        draft.write_text("kill@2")
        draft.rename(tmp_path / POINT)
        found.send_signal(signal.SIGCONT)
        assert found.wait(30) == -signal.SIGKILL


@pytest.mark.parametrize("value", ["kill", "kill@0", "kill@x", "faint@1", ""])
def test_an_order_that_cannot_be_read(value: str):
    with pytest.raises(UsageError, match="is no order for a fail-point"):
        failpoints.parse(value)


def test_a_point_that_does_not_exist():
    with pytest.raises(UsageError, match=r"no fail-point 'serverapp\.nowhere'"):
        failpoints.armed("serverapp.nowhere=kill@1")


def test_the_points_in_the_code_are_those_that_are_declared_and_documented():
    code = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "flq").rglob("*.py")))
    page = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    reached = re.findall(r"\breach\(\"([a-z.-]+)\"\)", code)
    documented = re.findall(r"^\| `([a-z]+\.[a-z-]+)` \|", page, re.MULTILINE)
    assert sorted(reached) == sorted(POINTS)
    assert sorted(documented) == sorted(POINTS)
