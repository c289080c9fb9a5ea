"""docs/flower-apps.md names everything that flq has, or has not, of Flower (flwr)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flq.apps.flower_names import ABSENT, MODULES

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "flower-apps.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### (flwr[\w.]*)\n(.*?)(?=^### |\Z)", PAGE, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("module", MODULES)
def test_every_name_stands_in_the_section_of_its_module_or_its_package(module: str):
    section = SECTIONS.get(module)
    if section is None:
        package = module.rpartition(".")[0]
        assert f"`{module}`" in SECTIONS[package]
        section = SECTIONS[package]
    missing = [name for name in (*MODULES[module], *ABSENT.get(module, ())) if f"`{name}`" not in section]
    assert missing == []


def test_every_absent_name_has_its_reason():
    told = [(name, why) for names in ABSENT.values() for name, why in names.items()]
    assert [name for name, why in told if f"| `{name}` | not offered: {why} |" not in PAGE] == []


def test_every_test_that_is_named_exists():
    named = set(re.findall(r"\b((?:unit|acceptance)/test_\w+\.py)", PAGE))
    assert named
    assert [name for name in named if not (TESTS / name).exists()] == []
