"""The jobs of SuperExec."""

from __future__ import annotations

from collections.abc import Callable

from celery import Celery, Task

from flq.exec.celery_app import LAUNCH
from flq.wire.ids import RunId

Launch = Callable[..., str]
"""`Launcher.launch`: takes run id, attempt and job id by keyword and says how the attempt ended."""


def register(app: Celery, launch: Launch) -> None:
    """Add the one job to `app`: start an attempt of a run and see it to its end."""

    @app.task(name=LAUNCH, bind=True)  # type: ignore[untyped-decorator]
    def launch_run(job: Task, *, run: str, run_id: int, attempt: int) -> str:  # noqa: ARG001 - Celery Flower shows `run`
        return launch(run_id=RunId(run_id), attempt=attempt, job_id=str(job.request.id))
