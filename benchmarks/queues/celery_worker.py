"""Celery's side, in the environment of the peers: a worker with the pool `solo`, its broker in Valkey.

The worker stays up between measurements, and consumes from the queue only while it is to drain it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Any

from celery import Celery, signals

from benchmarks.queues.orders import Work, serve

QUEUE = "bench"
PAUSE = 0.02
REPLY_PATIENCE = 10.0

app = Celery("benchmark", broker=os.environ["QUEUE_BROKER"])
app.conf.update(worker_hijack_root_logger=False, broker_connection_retry_on_startup=True, task_ignore_result=True)


@app.task(name="train")  # type: ignore[untyped-decorator]
def train(number: int) -> int:
    """What a job does: nothing."""
    return number


class Orders:
    """The orders of this worker, carried out beside the worker's own thread."""

    def __init__(self) -> None:
        self._name = f"worker-{os.getpid()}@benchmark"
        self._work = Work()
        self._ready = threading.Event()
        signals.worker_ready.connect(self._up, weak=False)
        signals.task_prerun.connect(self._begun, weak=False)
        signals.task_postrun.connect(self._done, weak=False)
        self.worker = app.Worker(
            hostname=self._name,
            pool="solo",
            queues=[f"{QUEUE}-none"],
            without_gossip=True,
            without_mingle=True,
            loglevel=logging.WARNING,
        )

    def install(self) -> None:
        """Wait until the worker is up."""
        assert self._ready.wait(REPLY_PATIENCE), "the worker does not come up"

    def reset(self) -> None:
        """Begin with an empty queue."""
        with app.connection_for_write() as connection:
            connection.default_channel.queue_purge(QUEUE)

    def push(self, *, tasks: int) -> dict[str, Any]:
        """Send so many jobs, over one connection; Celery sends them one by one."""
        done = Work()
        done.begin()
        with app.producer_or_acquire() as producer:
            for number in range(tasks):
                train.apply_async((number,), queue=QUEUE, producer=producer)
                done.did(1)
        return done.told()

    def drain(self, *, batch: int) -> dict[str, Any]:
        """Consume until no job is left in the queue, nor at a worker."""
        assert batch == 1, "it has no batches"
        self.install()
        self._work = Work()
        app.control.add_consumer(QUEUE, destination=[self._name], reply=True, timeout=REPLY_PATIENCE, limit=1)
        with app.connection_for_write() as connection:
            client = connection.default_channel.client
            while client.llen(QUEUE) or client.hlen("unacked"):
                time.sleep(PAUSE)
        app.control.cancel_consumer(QUEUE, destination=[self._name], reply=True, timeout=REPLY_PATIENCE, limit=1)
        return self._work.told()

    def _up(self, **_: Any) -> None:
        self._ready.set()

    def _begun(self, **_: Any) -> None:
        self._work.begin()

    def _done(self, **_: Any) -> None:
        self._work.did(1)


def main() -> None:
    """Carry out orders, until there are no more."""
    orders = Orders()

    def carry_out() -> None:
        serve({name: getattr(orders, name) for name in ("install", "reset", "push", "drain")})
        orders.worker.stop()

    threading.Thread(target=carry_out).start()
    orders.worker.start()


if __name__ == "__main__":
    main()
