"""Everything at once on a few rows: nobody deadlocks, and nothing is finished twice."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Callable

from flq.errors import AttemptFenced, LinkError
from flq.link import tasks
from flq.link.database import Database
from flq.link.fleet import DbFleet
from flq.link.grid import DbGrid
from flq.wire.fleet import HostedNode, Lease
from flq.wire.status import Verdict
from tests.integration import link_acts as act
from tests.integration.link_acts import Doors

OVERLAPS = int(os.environ.get("FLQ_OVERLAPS", "1000"))
NODES = 4
WORKERS = 8


class Worker:
    """Does one thing after another to the same few tasks as everybody else."""

    def __init__(self, seed: int, fleet: DbFleet, hosted: list[HostedNode], grid: DbGrid, db: Database) -> None:
        self._random = random.Random(seed)  # noqa: S311 - repeatable
        self._fleet = fleet
        self._hosted = hosted
        self._grid = grid
        self._db = db
        self._leases: list[Lease] = []
        self.verdicts: Counter[Verdict] = Counter()
        self.accepted: list[int] = []
        self.errors: list[Exception] = []

    def work(self, shared: list[Lease], steps: int, pushing: threading.Lock) -> None:
        acts: list[tuple[Callable[[], object], int]] = [
            (lambda: self._claim(shared), 4),
            (lambda: self._submit(shared), 4),
            (lambda: self._renew(shared), 3),
            (lambda: self._release(shared), 2),
            (self._expire, 1),
            (self._cancel, 1),
            (lambda: self._push(pushing), 2),
        ]
        for _ in range(steps):
            (step,) = self._random.choices([a for a, _ in acts], [w for _, w in acts])
            try:
                step()
            except AttemptFenced:
                pass
            except LinkError as exc:  # a deadlock would come as this
                self.errors.append(exc)

    def _some(self, shared: list[Lease]) -> list[Lease]:
        found = list(shared)
        return self._random.sample(found, min(len(found), self._random.randint(1, 6)))

    def _claim(self, shared: list[Lease]) -> None:
        self._fleet._cursors.look_everywhere()
        nodes = self._random.sample(self._hosted, NODES // 2)
        shared.extend(act.claim(self._fleet, nodes, per_node=3, total=5))
        del shared[:-40]

    def _submit(self, shared: list[Lease]) -> None:
        for task, verdict in self._fleet.submit([act.reply(lease) for lease in self._some(shared)]).items():
            self.verdicts[verdict] += 1
            if verdict is Verdict.ACCEPTED:
                self.accepted.append(task)

    def _renew(self, shared: list[Lease]) -> None:
        tasks.renew(self._db, [lease.key for lease in self._some(shared)], {})

    def _release(self, shared: list[Lease]) -> None:
        tasks.release(self._db, [lease.key for lease in self._some(shared)])

    def _expire(self) -> None:
        with self._db.transaction() as tx:
            tx.execute(
                "UPDATE flq_state.batch SET deadline = clock_timestamp() WHERE batch_id IN"
                " (SELECT batch_id FROM flq_state.task ORDER BY random() LIMIT 1)"
            )
            tasks.expire_overdue(tx)

    def _cancel(self) -> None:
        with self._db.connection() as connection:
            rows = connection.execute("SELECT batch_id FROM flq_state.task ORDER BY random() LIMIT 2").fetchall()
        self._grid.cancel([row[0] for row in rows])

    def _push(self, pushing: threading.Lock) -> None:
        with pushing:
            push = act.push(*(node.node_id for node in self._hosted))
        self._grid.push(push)


def test_nobody_deadlocks_and_nothing_is_finished_twice(doors: Doors, db: Database):
    fleet, hosted = doors.fleet(*(f"n{i}" for i in range(NODES)))
    grid, _ = doors.grid()
    for _ in range(5):
        grid.push(act.push(*(node.node_id for node in hosted)))
    shared: list[Lease] = []
    pushing = threading.Lock()
    workers = [Worker(seed, fleet, hosted, grid, db) for seed in range(WORKERS)]
    threads = [threading.Thread(target=worker.work, args=(shared, OVERLAPS // WORKERS, pushing)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [str(error) for worker in workers for error in worker.errors] == []
    accepted = [task for worker in workers for task in worker.accepted]
    assert len(accepted) == len(set(accepted))
    assert accepted
    with db.connection() as connection:
        deadlocks = connection.execute(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone()
        both = connection.execute(
            "SELECT count(*) FROM flq_state.task t JOIN flq_state.result s USING (batch_id, task_id)"
        ).fetchone()
        short = connection.execute(
            "SELECT b.batch_id FROM flq_state.batch b WHERE b.tasks <>"
            " (SELECT count(*) FROM flq_state.task t WHERE t.batch_id = b.batch_id)"
            " + (SELECT count(*) FROM flq_state.result s WHERE s.batch_id = b.batch_id)"
        ).fetchall()
    assert (deadlocks, both, short) == ((0,), (0,), [])
