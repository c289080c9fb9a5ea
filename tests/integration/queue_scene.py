"""What tests of the queue look at: two nodes and two runs, what is open, over and told."""

from __future__ import annotations

from flq.link import notify
from flq.link.database import Database
from flq.link.fleet import DbFleet
from flq.link.grid import DbGrid
from flq.link.notify import Notice
from flq.wire.fleet import HostedNode, Lease
from flq.wire.grid import Pushed
from flq.wire.ids import NodeId, RunId, TaskId
from flq.wire.runs import FeedCursor
from flq.wire.status import ResultStatus
from tests.integration import link_acts as act
from tests.integration.link_acts import Doors


class Scene:
    """Two nodes of one process and two runs, with as many tasks as there are pushes."""

    def __init__(self, doors: Doors, db: Database) -> None:
        self.db = db
        self.doors = doors
        self.fleet, self.hosted = doors.fleet("a", "b")
        self.nodes = [node.node_id for node in self.hosted]
        self.grids: list[DbGrid] = []
        self.runs: list[RunId] = []
        for _ in range(2):
            grid, claim = doors.grid()
            self.grids.append(grid)
            self.runs.append(claim.run.run_id)

    def push(self, run: int = 0, *nodes: NodeId) -> Pushed:
        return self.grids[run].push(act.push(*(nodes or self.nodes)))

    def claim(self, *, fleet: DbFleet | None = None, hosted: list[HostedNode] | None = None) -> dict[TaskId, Lease]:
        """By task; a look at everything."""
        fleet = fleet or self.fleet
        fleet._cursors.look_everywhere()
        return {lease.key.task_id: lease for lease in act.claim(fleet, hosted or self.hosted)}

    def rows(self, columns: str, where: str = "true") -> list[tuple[object, ...]]:
        """Columns of the open tasks, by task."""
        with self.db.connection() as connection:
            return connection.execute(f"SELECT {columns} FROM flq_state.task WHERE {where} ORDER BY task_id").fetchall()

    def attempts(self) -> list[tuple[object, ...]]:
        """The history of attempts: task, attempt, reason."""
        with self.db.connection() as connection:
            return connection.execute(
                "SELECT task_id, attempt, reason FROM flq_state.task_attempt ORDER BY task_id, attempt"
            ).fetchall()

    def ended(self, *pushed: Pushed) -> dict[TaskId, ResultStatus]:
        page = self.grids[0].arrived([p.batch_id for p in pushed], FeedCursor())
        return {key.task_id: key.status for key in page.keys}

    def leases_run_out(self, *task_ids: TaskId) -> None:
        with self.db.connection() as connection:
            connection.execute(
                "UPDATE flq_state.task SET lease_until = clock_timestamp() - interval '1 s' WHERE task_id = ANY (%s)",
                [list(task_ids)],
            )

    def deadlines_pass(self, *pushed: Pushed) -> None:
        with self.db.connection() as connection:
            connection.execute(
                "UPDATE flq_state.batch SET deadline = clock_timestamp() WHERE batch_id = ANY (%s)",
                [[p.batch_id for p in pushed]],
            )


class Ear:
    """Listens to some channels, and hears everything up to a word of its own."""

    def __init__(self, dsn: str, db: Database, *channels: str) -> None:
        self._db = db
        self._listener = notify.Listener(dsn, "flq_test", *channels)

    def heard(self) -> list[Notice]:
        with self._db.connection() as connection:
            notify.tell(connection, "flq_test", "so far")
        found: list[Notice] = []
        while Notice("flq_test", "so far") not in found:
            found += self._listener.wait(20)
        return [notice for notice in found if notice.channel != "flq_test"]

    def close(self) -> None:
        self._listener.close()


def one_of_each(leases: dict[TaskId, Lease], *, node: NodeId, run: RunId) -> Lease:
    (found,) = (lease for lease in leases.values() if (lease.key.node_id, lease.key.run_id) == (node, run))
    return found
