"""Fixtures for tests that speak to the SuperLink."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flq.link import notify
from flq.link.database import Database
from tests.integration.link_acts import Doors
from tests.integration.queue_scene import Ear, Scene

if TYPE_CHECKING:
    from tests.integration.exec_acts import Broker


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


@pytest.fixture
def valkey() -> Iterator[Broker]:
    """A Valkey of the test's own, which may be killed and frozen."""
    from tests.integration.exec_acts import Broker  # imports Celery, which most tests here do without

    with tempfile.TemporaryDirectory(prefix="flq-broker-") as folder:  # a socket's path must be short
        found = Broker(Path(folder))
        yield found
        found.kill()
