"""procrastinate's side, in the environment of the peers: its worker, which takes one job with a statement."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from procrastinate import App, PsycopgConnector  # type: ignore[import-not-found]
from procrastinate.manager import JobManager  # type: ignore[import-not-found]

from benchmarks.queues.orders import Work, serve_async

PUSHED = 1000
"""How many jobs are deferred with one statement."""

CONCURRENCY = 10
CONNECTIONS = 10


class TimedManager(JobManager):  # type: ignore[misc]
    """Notes when the first job is fetched and when the last is finished, since a worker also starts and stops."""

    work: Work

    async def fetch_job(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch one."""
        self.work.begin()
        return await super().fetch_job(*args, **kwargs)

    async def finish_job(self, *args: Any, **kwargs: Any) -> None:
        """Finish one."""
        await super().finish_job(*args, **kwargs)
        self.work.did(1)


class Orders:
    """The orders of this worker."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._app.job_manager = TimedManager(app.connector)
        self._train = app.task(train, name="train")

    async def install(self) -> None:
        """Have the schema."""
        await self._app.schema_manager.apply_schema_async()

    async def reset(self) -> None:
        """Begin with an empty table."""
        await self._app.connector.execute_query_async("TRUNCATE procrastinate_jobs CASCADE")

    async def push(self, *, tasks: int) -> dict[str, Any]:
        """Defer so many jobs."""
        done = Work()
        while done.tasks < tasks:
            jobs = [{"number": number} for number in range(min(PUSHED, tasks - done.tasks))]
            done.begin()
            await self._train.batch_defer_async(*jobs)
            done.did(len(jobs))
        return done.told()

    async def drain(self, *, batch: int) -> dict[str, Any]:
        """Let a worker do jobs until there are none."""
        assert batch == 1, "it has no batches"
        self._app.job_manager.work = Work()
        await self._app.run_worker_async(
            wait=False, concurrency=CONCURRENCY, listen_notify=False, install_signal_handlers=False
        )
        told: dict[str, Any] = self._app.job_manager.work.told()
        return told


async def train(number: int) -> int:
    """What a job does: nothing."""
    return number


async def main() -> None:
    """Carry out orders."""
    connector = PsycopgConnector(conninfo=os.environ["QUEUE_DSN"], min_size=1, max_size=CONNECTIONS)
    app = App(connector=connector)
    async with app.open_async():
        orders = Orders(app)
        await serve_async({name: getattr(orders, name) for name in ("install", "reset", "push", "drain")})


if __name__ == "__main__":
    asyncio.run(main())
