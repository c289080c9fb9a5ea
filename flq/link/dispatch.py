"""Dispatch: pending runs become jobs, at most as many as the live SuperExecs have free slots.

Postgres is the truth and the job a hint: it is published after the commit, and again if nobody takes it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from flq import log
from flq.errors import BrokerUnreachable
from flq.failpoints import reach
from flq.link import attempts
from flq.link.database import Database
from flq.wire.runs import Job

logger = log.get(__name__)

Publish = Callable[[Job], None]
"""Hands a job to Celery. Raises `BrokerUnreachable`."""

RETRY_SECONDS = 1.0
"""How long to leave a broker alone that did not take a job."""


class Dispatcher:
    """Allocates attempts and publishes their jobs."""

    def __init__(self, db: Database, publish: Publish) -> None:
        self._db = db
        self._publish = publish
        self._broker_lost = False
        self._not_before = 0.0

    def step(self) -> int:
        """Publish what is due; returns how many jobs were published.

        A broker that cannot be reached delays a run: its job counts as one that nobody has taken. Once the broker is
        back, all that nobody has taken is published again at once: it may have forgotten everything.
        """
        if time.monotonic() < self._not_before:
            return 0
        patience = 0.0 if self._broker_lost else attempts.PATIENCE_SECONDS
        again = attempts.unclaimed(self._db, patience=patience)
        sent = self._send([*again, *attempts.allocate(self._db)])
        attempts.republished(self._db, again[:sent])
        return sent

    def _send(self, jobs: Sequence[Job]) -> int:
        for sent, job in enumerate(jobs):
            reach("superlink.before-publish")
            try:
                self._publish(job)
            except BrokerUnreachable as exc:
                if not self._broker_lost:
                    logger.warning("%d jobs wait for the broker: %s", len(jobs) - sent, exc)
                self._broker_lost = True
                self._not_before = time.monotonic() + RETRY_SECONDS
                attempts.delayed(self._db, jobs[sent:], reason=exc.message)
                return sent
            reach("superlink.after-publish")
            logger.info("published attempt %d of run %s as job %s", job.attempt, job.name, job.job_id)
            self._broker_lost = False
        return len(jobs)
