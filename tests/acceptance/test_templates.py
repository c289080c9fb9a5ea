"""The template that the test of the wheel does not run, since few people have torch at hand."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.acceptance.flq_command import Flq

pytestmark = pytest.mark.acceptance


@pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")
def test_a_first_day_with_torch(cold: Flq, tmp_path: Path):
    cold("new", tmp_path / "vision", "--template", "torch")
    assert cold.json("app", "check", tmp_path / "vision")["problems"] == []
    last = cold("run", tmp_path / "vision", "--stream", "--name", "seen").splitlines()[-1]
    key, _, accuracy = last.partition("=")
    assert key == "accuracy"
    assert float(accuracy) > 0.9
    cold("pull", "seen", "--output", tmp_path)
    assert (tmp_path / "model.pt").stat().st_size > 1000
