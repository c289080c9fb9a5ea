"""pgmq's side, in the environment of the peers: the functions of its SQL file, called by a loop.

read (visibility timeout 30 s) → a function for each message → archive
"""

from __future__ import annotations

import json
import os
from typing import Any

import psycopg
from pgmq.install import get_embedded_install_sql, install_pgmq_sql  # type: ignore[import-not-found]

from benchmarks.queues.orders import Work, serve

QUEUE = "bench"
PUSHED = 1000
"""How many messages are sent with one statement."""

VISIBILITY = 30


def train(number: int) -> int:
    """What a consumer does: nothing."""
    return number


class Orders:
    """The orders of this worker."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection = psycopg.connect(dsn, autocommit=True)

    def install(self) -> None:
        """Have the functions and a queue."""
        install_pgmq_sql(get_embedded_install_sql(), dsn=self._dsn)
        self._connection.execute("SELECT pgmq.create(%s)", [QUEUE])

    def reset(self) -> None:
        """Begin with an empty queue and an empty archive."""
        self._connection.execute(f"TRUNCATE pgmq.q_{QUEUE}, pgmq.a_{QUEUE}")

    def push(self, *, tasks: int) -> dict[str, Any]:
        """Send so many messages."""
        done = Work()
        while done.tasks < tasks:
            messages = [json.dumps({"number": number}) for number in range(min(PUSHED, tasks - done.tasks))]
            done.begin()
            sent = self._connection.execute("SELECT pgmq.send_batch(%s, %s::jsonb[])", [QUEUE, messages], prepare=True)
            assert sent.rowcount == len(messages)
            done.did(len(messages))
        return done.told()

    def drain(self, *, batch: int) -> dict[str, Any]:
        """Read and archive messages until there are none."""
        done, cursor = Work(), self._connection.cursor(binary=True)
        while True:
            done.begin()
            rows = cursor.execute(
                "SELECT msg_id, message FROM pgmq.read(%s, %s, %s)", [QUEUE, VISIBILITY, batch], prepare=True
            ).fetchall()
            if not rows:
                return done.told()
            for _, message in rows:
                train(**message)
            cursor.execute("SELECT pgmq.archive(%s, %s::bigint[])", [QUEUE, [row[0] for row in rows]], prepare=True)
            assert cursor.rowcount == len(rows)
            done.did(len(rows))


def main() -> None:
    """Carry out orders."""
    orders = Orders(os.environ["QUEUE_DSN"])
    serve({name: getattr(orders, name) for name in ("install", "reset", "push", "drain")})


if __name__ == "__main__":
    main()
