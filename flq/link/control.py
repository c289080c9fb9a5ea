"""Control on the database: the door for people who are trusted with a DSN."""

from __future__ import annotations

from collections.abc import Sequence

from flq.errors import DatabaseUnreachable
from flq.link import (
    artifacts,
    attempts,
    events,
    inspect,
    lineage,
    logs,
    nodes,
    notify,
    objects,
    processes,
    runs,
    schema,
)
from flq.link.database import Database
from flq.wire.ids import RunId
from flq.wire.runs import (
    ArtifactRow,
    AttemptRow,
    Cause,
    Derivation,
    EventRow,
    FeedCursor,
    LogPage,
    NodeRow,
    RoundRow,
    RunRow,
    Submission,
    SuperExecRow,
    Table,
)
from flq.wire.status import RunStatus


class DbControl:
    """Implements `flq.wire.control.Control`. Refuses a database at another schema revision."""

    def __init__(self, dsn: str) -> None:
        schema.check(dsn)
        self._db = Database(dsn, application="flq")
        self._listener: notify.Listener | None = None

    def submit(self, submission: Submission) -> RunRow:
        """See `Control.submit`."""
        return self._row(runs.submit(self._db, submission))

    def derive(self, run: str, derivation: Derivation) -> RunRow:
        """See `Control.derive`."""
        return self._row(lineage.derive(self._db, self.resolve(run), derivation))

    def resume(self, run: str, *, actor: str, wall_time_limit: float | None = None) -> RunRow:
        """See `Control.resume`."""
        run_id = self.resolve(run)
        with self._db.transaction() as tx:
            runs.resume(tx, run_id, actor=actor, wall_time_limit=wall_time_limit)
        return self._row(run_id)

    def runs(self, *, limit: int = 100) -> list[RunRow]:
        """See `Control.runs`."""
        return runs.listing(self._db, limit=limit)

    def run(self, run: str) -> RunRow:
        """See `Control.run`."""
        return self._row(self.resolve(run))

    def finished(self, run: str) -> bool:
        """See `Control.finished`."""
        return runs.info(self._db, self.resolve(run)).status is RunStatus.FINISHED

    def attempts(self, run: str) -> list[AttemptRow]:
        """See `Control.attempts`."""
        return attempts.listing(self._db, self.resolve(run))

    def rounds(self, run: str, *, since: int = 1) -> list[RoundRow]:
        """See `Control.rounds`."""
        return runs.rounds(self._db, self.resolve(run), since=since)

    def events(self, run: str) -> list[EventRow]:
        """See `Control.events`."""
        return events.listing(self._db, self.resolve(run))

    def waiting(self, run: str) -> list[Cause]:
        """See `Control.waiting`."""
        return runs.waiting(self._db, self.resolve(run))

    def stop(self, run: str, *, actor: str, reason: str | None = None) -> RunRow:
        """See `Control.stop`."""
        run_id = self.resolve(run)
        attempts.stop(self._db, run_id, actor=actor, reason=reason)
        return self._row(run_id)

    def logs(self, run: str, cursor: FeedCursor) -> LogPage:
        """See `Control.logs`."""
        return logs.read(self._db, self.resolve(run), cursor)

    def wait(self, seconds: float) -> None:
        """See `Control.wait`."""
        if self._listener is None:
            self._listener = notify.Listener(self._db.dsn, notify.RUNS, application="flq watching")
            return
        self._listener.wait(seconds)

    def artifacts(self, run: str) -> list[ArtifactRow]:
        """See `Control.artifacts`."""
        return artifacts.listing(self._db, self.resolve(run))

    def artifact(self, run: str, name: str, into: memoryview) -> None:
        """See `Control.artifact`."""
        objects.read(self._db, artifacts.find(self._db, self.resolve(run), name).hash, into)

    def nodes(self) -> list[NodeRow]:
        """See `Control.nodes`."""
        return nodes.listing(self._db)

    def superexecs(self) -> list[SuperExecRow]:
        """See `Control.superexecs`."""
        return processes.superexecs(self._db)

    def query(self, sql: str, parameters: Sequence[object] = ()) -> Table:
        """See `Control.query`."""
        return inspect.query(self._db, sql, parameters)

    def resolve(self, run: str) -> RunId:
        """See `Control.resolve`."""
        return runs.resolve(self._db, run)

    def close(self) -> None:
        """See `Control.close`."""
        if self._listener is not None:
            self._listener.close()
        self._db.close()

    def _row(self, run_id: RunId) -> RunRow:
        found = runs.listing(self._db, run_id=run_id, limit=1)
        if not found:
            raise DatabaseUnreachable(f"run {run_id} has vanished")
        return found[0]
