"""Fixtures for tests that speak to the SuperLink."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flq.link import notify
from flq.link.database import Database
from tests.integration.link_acts import Doors
from tests.integration.queue_scene import Ear, Scene


@pytest.fixture
def doors(dsn: str, db: Database) -> Iterator[Doors]:
    """Opens Fleets and Grids on the test's database."""
    found = Doors(dsn, db)
    with found.opened:
        yield found


@pytest.fixture
def scene(doors: Doors, db: Database) -> Scene:
    """Two nodes of one process and two runs."""
    return Scene(doors, db)


@pytest.fixture
def ear(dsn: str, db: Database, scene: Scene) -> Iterator[Ear]:
    """Hears of tasks, and of the results of both runs."""
    found = Ear(dsn, db, notify.TASKS, *(notify.results_channel(run_id) for run_id in scene.runs))
    found.heard()
    yield found
    found.close()
