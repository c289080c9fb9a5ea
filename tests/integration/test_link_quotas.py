"""Quotas: open tasks and stored bytes of a run."""

from __future__ import annotations

import threading

import pytest

from flq.errors import QuotaExceeded
from flq.link import batches, quotas, shared, tasks
from flq.link.attempts import AttemptClaim
from flq.link.database import Database
from flq.wire.grid import Push
from flq.wire.ids import RunId
from tests.integration import link_acts as act
from tests.integration.link_acts import Doors
from tests.integration.used import store
from tests.waiting import eventually


def push(db: Database, claim: AttemptClaim, pushed: Push) -> None:
    """A push that says at once what is wrong; `Grid.push` would wait for room."""
    batches.push(db, run_id=claim.run.run_id, token=claim.token, push=pushed)


def limit(db: Database, run_id: RunId, *, max_open_tasks: int | None = None, max_bytes: int | None = None) -> None:
    with db.transaction() as tx:
        quotas.limit(tx, run_id, max_open_tasks=max_open_tasks, max_bytes=max_bytes)


def test_open_tasks_are_limited_until_some_have_finished(doors: Doors, db: Database):
    fleet, hosted = doors.fleet("a", "b", "c", "d")
    a, b, c, d = (node.node_id for node in hosted)
    _, claim = doors.grid()
    push(db, claim, act.push(a, b, sequence=0))
    limit(db, claim.run.run_id, max_open_tasks=3)
    with pytest.raises(QuotaExceeded, match="2 open tasks; 2 more are above its limit of 3") as caught:
        push(db, claim, act.push(c, d, sequence=1))
    assert caught.value.passes
    push(db, claim, act.push(a, b, sequence=0))  # it is there already
    push(db, claim, act.push(c, sequence=1))
    with pytest.raises(QuotaExceeded, match="4 tasks is more than the 3") as caught:
        push(db, claim, act.push(a, b, c, d, sequence=2))
    assert not caught.value.passes
    leases = act.claim(fleet, hosted)
    assert len(leases) == 3
    fleet.submit([act.reply(lease) for lease in leases])
    push(db, claim, act.push(a, b, c, sequence=2))


def test_a_push_waits_for_open_tasks_to_end(doors: Doors, db: Database, caplog: pytest.LogCaptureFixture):
    fleet, hosted = doors.fleet("a", "b")
    a, b = (node.node_id for node in hosted)
    grid, claim = doors.grid()
    grid.push(act.push(a, b))
    limit(db, claim.run.run_id, max_open_tasks=2)
    waiting = threading.Thread(target=grid.push, args=(act.push(a),), daemon=True)
    waiting.start()
    eventually(lambda: "the push waits for open tasks" in caplog.text, what="a push that was refused")
    assert len(act.claim(fleet, hosted)) == 2
    assert waiting.is_alive()
    with db.transaction() as tx:
        tasks.cancel_run(tx, claim.run.run_id, reason="to make room")
    waiting.join(20)
    assert len(act.claim(fleet, hosted)) == 1


def test_bytes_are_limited_and_each_object_counts_once(doors: Doors, db: Database):
    (node,) = doors.fleet("a")[1]
    grid, claim = doors.grid()
    first, second = store(grid, 600), store(grid, 600)
    limit(db, claim.run.run_id, max_bytes=1000)
    for sequence in range(2):
        push(db, claim, act.push(node.node_id, sequence=sequence, objects=frozenset({first})))
    with pytest.raises(QuotaExceeded, match="would store 1200 bytes, which is above its limit of 1000") as caught:
        push(db, claim, act.push(node.node_id, sequence=2, objects=frozenset({second})))
    assert not caught.value.passes
    push(db, claim, act.push(node.node_id, sequence=2))


def test_the_federation_has_limits_that_a_run_may_override(doors: Doors, db: Database):
    a, b = (node.node_id for node in doors.fleet("a", "b")[1])
    _, claim = doors.grid()
    with db.connection() as connection:
        shared.put(connection, quotas.MAX_OPEN_TASKS, 1)
        assert shared.get(connection, quotas.MAX_OPEN_TASKS) == 1
    with pytest.raises(QuotaExceeded):
        push(db, claim, act.push(a, b, sequence=0))
    limit(db, claim.run.run_id, max_open_tasks=2)
    push(db, claim, act.push(a, b, sequence=0))
    limit(db, claim.run.run_id)
    with db.connection() as connection:
        shared.put(connection, quotas.MAX_OPEN_TASKS, None)
        assert shared.get(connection, quotas.MAX_OPEN_TASKS) is None
    push(db, claim, act.push(a, b, sequence=1))
