"""What can be seen of a run from outside, in the database: how far it is, and when it went on after something."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg

PATIENCE = 90.0
PAUSE = 0.03

RUNNING_AGAIN = """
    SELECT min(at) FROM flq_state.run_event
    WHERE run_id = %(run_id)s AND event = 'running' AND at > to_timestamp(%(at)s)
"""
SUPERLINK_BACK = """
    SELECT min(started_at) FROM flq_state.process WHERE kind = 'superlink' AND started_at > to_timestamp(%(at)s)
"""
TASK_CLAIMED = """
    SELECT min(c.claimed_at)
    FROM (SELECT process_id, claimed_at FROM flq_state.task WHERE run_id = %(run_id)s
          UNION ALL SELECT process_id, claimed_at FROM flq_state.result WHERE run_id = %(run_id)s) c
    JOIN flq_state.process p ON p.process_id = c.process_id AND p.started_at > to_timestamp(%(at)s)
"""
TASK_DONE_AGAIN = """
    SELECT min(started_at) FROM flq_state.result
    WHERE run_id = %(run_id)s AND attempt > 1 AND started_at > to_timestamp(%(at)s)
"""
_MOMENTS = """
    SELECT min(moment)
    FROM (SELECT ended_at AS moment FROM flq_state.result WHERE run_id = %(run_id)s
          UNION ALL SELECT created_at FROM flq_state.batch WHERE run_id = %(run_id)s
          UNION ALL SELECT committed_at FROM flq_state.checkpoint WHERE run_id = %(run_id)s) m
"""
PROGRESS = f"{_MOMENTS} WHERE moment > to_timestamp(%(at)s)"
PROGRESS_ON_NEW_SERVER = f"""
    {_MOMENTS}
    WHERE moment > pg_postmaster_start_time() AND pg_postmaster_start_time() > to_timestamp(%(at)s)
"""


@dataclass(frozen=True, slots=True)
class RunState:
    """Where a run stands; `results` counts its finished tasks."""

    finished: bool
    outcome: str | None
    reason: str | None
    attempt: int
    results: int


@dataclass(slots=True)
class Observer:
    """Looks at one run. What it has once seen committed it remembers: none of it may change or go."""

    dsn: str
    run_id: int
    results: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    rounds: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    _connection: psycopg.Connection[tuple[Any, ...]] | None = None

    def rows(self, query: str, **values: object) -> list[tuple[Any, ...]]:
        """The rows of a query; a database that is away is waited for."""
        give_up = time.monotonic() + PATIENCE
        while True:
            try:
                if self._connection is None:
                    self._connection = psycopg.connect(self.dsn, autocommit=True, connect_timeout=2)
                return self._connection.execute(query, {"run_id": self.run_id, **values}).fetchall()
            except (psycopg.OperationalError, psycopg.errors.AdminShutdown):
                self.close()
                if time.monotonic() > give_up:
                    raise
                time.sleep(PAUSE)

    def state(self) -> RunState:
        """Where the run stands now."""
        (found,) = self.rows(
            "SELECT status = 'finished', outcome, reason, attempt,"
            " (SELECT count(*) FROM flq_state.result s WHERE s.run_id = r.run_id)"
            " FROM flq_state.run r WHERE run_id = %(run_id)s"
        )
        return RunState(*found)

    def moment(self, query: str, *, at: float) -> float | None:
        """The moment that one of the queries above finds after `at`, both in seconds since the epoch."""
        ((found,),) = self.rows(query, at=at)
        return None if found is None else float(found.timestamp())

    def serverapp(self) -> int | None:
        """The pid of the run's ServerApp, if it has one."""
        found = self.rows("SELECT pid FROM flq_state.run_attempt WHERE run_id = %(run_id)s AND status = 'claimed'")
        return found[0][0] if found else None

    def look(self) -> None:
        """Remember what is committed, and note what has changed of what was."""
        results = self.rows(
            "SELECT task_id, batch_id, status::text, token, attempt FROM flq_state.result WHERE run_id = %(run_id)s"
        )
        rounds = self.rows(
            "SELECT round, checkpoint_id, attempt, committed_at FROM flq_state.checkpoint WHERE run_id = %(run_id)s"
        )
        self._compare("result of task", self.results, {row[0]: row[1:] for row in results})
        self._compare("commit of round", self.rounds, {row[0]: row[1:] for row in rounds})

    def _compare(self, what: str, known: dict[int, tuple[Any, ...]], found: Mapping[int, tuple[Any, ...]]) -> None:
        for key, row in known.items():
            if found.get(key) != row:
                self.changed.append(f"the {what} {key} was {row}, and is {found.get(key)}")
        known.update(found)

    def close(self) -> None:
        """Give the connection back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error):
                connection.close()
