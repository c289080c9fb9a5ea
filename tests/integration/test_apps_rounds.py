"""Rounds that do not wait for everybody, on a real SuperLink: who is late is recorded, and changes nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from flq.apps import ArrayRecord, Grid
from flq.apps.strategy import FedAvg, FedMedian
from flq.link.database import Database
from flq.wire.fleet import Reply
from tests.integration import link_acts as act
from tests.integration.link_acts import Doors
from tests.integration.test_apps_grid import NODES, adding_app, answer

ROUNDS_WITHOUT_LAST: dict[str, Any] = {
    "over-selection": {"fraction_train": 0.5, "over_select": 0.5, "min_available_nodes": 3},
    "a deadline": {"round_deadline": 4.0, "min_replies": 2},
}


@contextmanager
def slow_last_node(doors: Doors) -> Iterator[list[Reply]]:
    """Hosts the nodes. The last one's replies are not submitted, but handed out; they are after the block."""
    fleet, hosted = doors.fleet(*NODES)
    app, held, stop = adding_app(), list[Reply](), threading.Event()

    def work() -> None:
        while not stop.is_set():
            leases = act.claim(fleet, hosted)
            for lease in leases:
                reply = answer(app, fleet, lease, last=False)
                if lease.key.node_id == hosted[-1].node_id:
                    held.append(reply)
                else:
                    fleet.submit([reply])
            if not leases:
                fleet.wait(0.1)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield held
    finally:
        stop.set()
        worker.join()
    fleet.submit(held)


@pytest.mark.parametrize("strategy", [FedAvg, FedMedian])
@pytest.mark.parametrize("how", ROUNDS_WITHOUT_LAST)
def test_the_round_ends_without_the_late_one(doors: Doors, db: Database, how: str, strategy: Any):
    with slow_last_node(doors) as held:
        door, claim = doors.grid()
        ids = [node.node_id for node in door.nodes()]
        start = ArrayRecord([np.zeros(20_000)])
        made = strategy(fraction_evaluate=0, **ROUNDS_WITHOUT_LAST[how])
        result = made.start(Grid(door), start, num_rounds=2, timeout=60)
        assert held
    assert result.arrays["0"].numpy()[0] == pytest.approx(2 * sum(ids[:2]) / 2)
    with db.connection() as connection:
        statuses = connection.execute(
            "SELECT status::text, count(*) FROM flq_state.result GROUP BY status ORDER BY status"
        ).fetchall()
        (late,) = connection.execute(
            "SELECT sum((details ->> 'count')::int) FROM flq.events WHERE event = 'late results' AND run = %s",
            [claim.run.name],
        ).fetchone() or (None,)
    assert dict(statuses) == {"ok": 4, "cancelled": 2}
    assert late == len(held)
