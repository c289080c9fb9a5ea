"""PgQueuer's side, in the environment of the peers: its queue manager in drain mode, on asyncpg and uvloop."""

from __future__ import annotations

import os
from typing import Any

import asyncpg  # type: ignore[import-not-found]
import uvloop  # type: ignore[import-not-found]
from pgqueuer import PgQueuer  # type: ignore[import-not-found]
from pgqueuer.adapters.drivers.asyncpg import AsyncpgPoolDriver  # type: ignore[import-not-found]
from pgqueuer.adapters.persistence.queries import Queries  # type: ignore[import-not-found]
from pgqueuer.domain.types import QueueExecutionMode  # type: ignore[import-not-found]
from psycopg.conninfo import conninfo_to_dict

from benchmarks.queues.orders import Work, serve_async

PUSHED = 1000
"""How many jobs are enqueued with one statement."""

CONNECTIONS = 4


class TimedQueries(Queries):  # type: ignore[misc]
    """Notes when the first jobs are asked for and when the last are finished: a manager also starts and stops."""

    work: Work

    async def dequeue(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch some."""
        self.work.begin()
        return await super().dequeue(*args, **kwargs)

    async def log_jobs(self, job_status: list[Any]) -> None:
        """Finish some."""
        await super().log_jobs(job_status)
        self.work.did(len(job_status))


class Orders:
    """The orders of this worker."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._queries = TimedQueries(AsyncpgPoolDriver(pool))

    async def install(self) -> None:
        """Have the schema."""
        await self._queries.install()

    async def reset(self) -> None:
        """Begin with an empty queue and an empty log."""
        await self._queries.clear_queue()
        await self._queries.clear_queue_log()

    async def push(self, *, tasks: int) -> dict[str, Any]:
        """Enqueue so many jobs."""
        done = Work()
        while done.tasks < tasks:
            number = min(PUSHED, tasks - done.tasks)
            payloads = [b'{"number": %d}' % each for each in range(number)]
            done.begin()
            await self._queries.enqueue(["train"] * number, payloads, [0] * number)
            done.did(number)
        return done.told()

    async def drain(self, *, batch: int) -> dict[str, Any]:
        """Let a queue manager do jobs until there are none."""
        driver = AsyncpgPoolDriver(self._pool)
        queries = TimedQueries(driver)
        queries.work = Work()
        manager = PgQueuer(driver, queries=queries)
        manager.entrypoint("train")(train)
        await manager.run(mode=QueueExecutionMode.drain, batch_size=batch)
        return queries.work.told()


async def train(job: Any) -> None:
    """What a job does: nothing."""


async def main() -> None:
    """Carry out orders."""
    dsn = conninfo_to_dict(os.environ["QUEUE_DSN"])
    pool = await asyncpg.create_pool(
        host=dsn["host"], port=dsn.get("port"), user=dsn.get("user"), database=dsn["dbname"],
        min_size=1, max_size=CONNECTIONS,
    )  # fmt: skip
    async with pool:
        orders = Orders(pool)
        await serve_async({name: getattr(orders, name) for name in ("install", "reset", "push", "drain")})


if __name__ == "__main__":
    uvloop.run(main())
