"""Fixtures for tests that speak to the SuperLink."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flq.link.database import Database
from tests.integration.link_acts import Doors


@pytest.fixture
def doors(dsn: str, db: Database) -> Iterator[Doors]:
    """Opens Fleets and Grids on the test's database."""
    found = Doors(dsn, db)
    with found.opened:
        yield found
