"""Fixtures for races: real connections that wait for each other at chosen points."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flq.link.database import Database
from tests.concurrency.overlap import Races
from tests.integration.conftest import doors

__all__ = ["doors", "races"]


@pytest.fixture
def races(dsn: str, db: Database) -> Iterator[Races]:
    """Runs calls on connections of their own, and sees which of them wait for a lock."""
    found = Races(dsn, db)
    yield found
    found.close()
