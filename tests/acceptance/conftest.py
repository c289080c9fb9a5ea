"""A whole embedded federation, as `flq up` starts it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.acceptance.flq_command import Flq
from tests.integration.local_home import temporary_home


@pytest.fixture(scope="module")
def flq() -> Iterator[Flq]:
    """The command, with a federation of four nodes that is up."""
    with temporary_home(prepared=True) as home:
        command = Flq(home)
        command("up", "--nodes", "4")
        yield command


@pytest.fixture
def prepared() -> Iterator[Flq]:
    """The command, with the home of a federation that has been up and did nothing."""
    with temporary_home(prepared=True) as home:
        yield Flq(home)


@pytest.fixture
def cold() -> Iterator[Flq]:
    """The command, with an empty home."""
    with temporary_home() as home:
        yield Flq(home)
