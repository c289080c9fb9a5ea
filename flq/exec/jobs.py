"""The jobs of SuperExec."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import Celery, Task

from flq.exec.celery_app import HOUSEKEEPING, LAUNCH
from flq.log import get
from flq.wire.ids import RunId

log = get(__name__)

Launch = Callable[..., str]
"""`Launcher.launch`: takes run id, attempt and job id by keyword and says how the attempt ended."""


Take = Callable[[Any], None]
"""Takes a housekeeping job; it is given the consumer that has read it from the broker."""


def register(app: Celery, launch: Launch) -> None:
    """Add the job to `app` that starts an attempt of a run and sees it to its end."""

    @app.task(name=LAUNCH, bind=True)  # type: ignore[untyped-decorator]
    def launch_run(job: Task, *, run: str, run_id: int, attempt: int) -> str:  # noqa: ARG001 - Celery Flower shows `run`
        return launch(run_id=RunId(run_id), attempt=attempt, job_id=str(job.request.id))


def register_housekeeping(app: Celery, take: Take) -> None:
    """Add the job to `app` by which a SuperExec finds out whether it still takes jobs.

    The main process takes it when it has read it: it needs no pool process, and shows as soon as jobs are read.
    """

    def strategy(_job: Task, _app: Celery, consumer: Any) -> Callable[..., None]:
        def on_message(_message: Any, _body: Any, acknowledge: Callable[..., None], *_: object) -> None:
            acknowledge(log, consumer.connection_errors)
            take(consumer)

        return on_message

    @app.task(name=HOUSEKEEPING, Strategy=staticmethod(strategy))  # type: ignore[untyped-decorator]
    def keep_house() -> None:
        """Never executed: see `strategy`."""
