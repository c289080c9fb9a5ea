"""Hands jobs to Celery: those of the SuperLink's dispatcher, after its commit, and those of a SuperExec's probe."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kombu.exceptions import OperationalError

from flq.errors import BrokerUnreachable
from flq.exec.celery_app import HOUSEKEEPING, LAUNCH, QUEUE, create_app, housekeeping_queue
from flq.wire.runs import Job

_RETRY = {"max_retries": 1, "interval_start": 0.05, "interval_max": 0.2}
"""One more try, on a fresh connection: the pooled one may be of a broker that was restarted."""


def publisher(broker: str) -> Callable[[Job], None]:
    """Return the function that publishes a job on `broker`. It raises `BrokerUnreachable`."""
    app = create_app(broker)

    def publish(job: Job) -> None:
        with _refusals():
            app.send_task(
                LAUNCH,
                kwargs={"run": job.name, "run_id": job.run_id, "attempt": job.attempt},
                task_id=job.job_id,
                queue=QUEUE,
                retry=True,
                retry_policy=_RETRY,
            )

    return publish


def housekeeper(broker: str, superexec: str) -> Callable[[], None]:
    """Return the function that sends `superexec` a housekeeping job. It raises `BrokerUnreachable`.

    The job goes to the queue itself, past any exchange, and needs nothing that a wiped broker has forgotten. No event
    tells of it: monitors list launches.
    """
    app, queue = create_app(broker), housekeeping_queue(superexec)

    def send() -> None:
        headers = {"task": HOUSEKEEPING, "id": uuid.uuid4().hex}
        with _refusals(), app.producer_pool.acquire(block=True) as producer:
            producer.publish(
                {}, exchange="", routing_key=queue, headers=headers, serializer="json", retry=True, retry_policy=_RETRY
            )

    return send


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except (OperationalError, OSError) as exc:
        raise _refusal(exc) from exc


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
