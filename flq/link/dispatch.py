"""Dispatch: pending runs become jobs, at most as many as the live SuperExecs have free slots.

Postgres is the truth and the job a hint: it is published after the commit, and again if nobody takes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flq import log
from flq.errors import BrokerUnreachable
from flq.link import attempts
from flq.link.database import Database
from flq.wire.runs import Job

logger = log.get(__name__)

Publish = Callable[[Job], None]
"""Hands a job to Celery. Raises `BrokerUnreachable`."""


class Dispatcher:
    """Allocates attempts and publishes their jobs."""

    def __init__(self, db: Database, publish: Publish) -> None:
        self._db = db
        self._publish = publish
        self._broker_lost = False

    def step(self) -> int:
        """Publish what is due; returns how many jobs were published.

        A broker that cannot be reached delays a run: its job counts as one that nobody has taken.
        """
        return self._send(attempts.allocate(self._db)) + self._send(attempts.unclaimed(self._db))

    def _send(self, jobs: Sequence[Job]) -> int:
        for sent, job in enumerate(jobs):
            try:
                self._publish(job)
            except BrokerUnreachable as exc:
                if not self._broker_lost:
                    logger.warning("%d jobs wait for the broker: %s", len(jobs) - sent, exc)
                self._broker_lost = True
                attempts.delayed(self._db, jobs[sent:], reason=exc.message)
                return sent
            logger.info("published attempt %d of run %s as job %s", job.attempt, job.name, job.job_id)
            self._broker_lost = False
        return len(jobs)
