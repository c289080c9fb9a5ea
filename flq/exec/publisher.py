"""Hands jobs to Celery: what the dispatcher of the SuperLink calls after its commit."""

from __future__ import annotations

from collections.abc import Callable

from kombu.exceptions import OperationalError

from flq.errors import BrokerUnreachable
from flq.exec.celery_app import LAUNCH, QUEUE, create_app
from flq.wire.runs import Job

_RETRY = {"max_retries": 1, "interval_start": 0.05, "interval_max": 0.2}
"""One more try, on a fresh connection: the pooled one may be of a broker that was restarted."""


def publisher(broker: str) -> Callable[[Job], None]:
    """Return the function that publishes a job on `broker`. It raises `BrokerUnreachable`."""
    app = create_app(broker)

    def publish(job: Job) -> None:
        try:
            app.send_task(
                LAUNCH,
                kwargs={"run": job.name, "run_id": job.run_id, "attempt": job.attempt},
                task_id=job.job_id,
                queue=QUEUE,
                retry=True,
                retry_policy=_RETRY,
            )
        except (OperationalError, OSError) as exc:
            raise _refusal(exc) from exc

    return publish


def _refusal(exc: Exception) -> BrokerUnreachable:
    said = str(exc).strip().partition("\n")[0]
    for sign, what, hint in _FULL:
        if sign in said:
            return BrokerUnreachable(f"the Celery broker takes no jobs: {what}", hint=hint)
    return BrokerUnreachable(f"the Celery broker cannot be reached: {said}", hint="start it, or correct FLQ_BROKER")


_FULL = (
    ("maxmemory", "its memory is full (maxmemory)", "raise its maxmemory, or free memory in it"),
    ("MISCONF", "it cannot write to its disk (MISCONF)", "make room on its disk"),
)
