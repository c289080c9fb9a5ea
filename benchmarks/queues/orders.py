"""What a worker process of this benchmark does: it carries out one order after the other.

Each line on stdin is an order as JSON, each line on stdout its answer. Workers of the peers run in an environment that
has nothing of flq: this module needs the standard library only.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

Order = Callable[..., Any]


@dataclass(slots=True)
class Work:
    """What a worker has done: so many tasks, from the first statement sent to the last one answered.

    Times are of the monotonic clock, in seconds: on one machine all processes have the same.
    """

    tasks: int = 0
    began: float | None = None
    ended: float | None = None

    def begin(self) -> None:
        """The first statement is about to be sent; later ones change nothing."""
        if self.began is None:
            self.began = time.monotonic()

    def did(self, tasks: int) -> None:
        """So many more tasks are completed."""
        self.tasks += tasks
        self.ended = time.monotonic()

    def told(self) -> dict[str, Any]:
        """As an answer."""
        return {"tasks": self.tasks, "began": self.began, "ended": self.ended}


def serve(orders: Mapping[str, Order]) -> None:
    """Carry out orders until stdin ends."""
    with _answers() as answers:
        for line in sys.stdin:
            name, arguments = _read(line)
            print(json.dumps(orders[name](**arguments)), file=answers, flush=True)


async def serve_async(orders: Mapping[str, Callable[..., Awaitable[Any]]]) -> None:
    """The same for orders that are coroutines."""
    with _answers() as answers:
        while line := await asyncio.to_thread(sys.stdin.readline):
            name, arguments = _read(line)
            print(json.dumps(await orders[name](**arguments)), file=answers, flush=True)


def _read(line: str) -> tuple[str, dict[str, Any]]:
    order = json.loads(line)
    return order.pop("order"), order


def _answers() -> Any:
    """Where answers go; whatever a library prints goes to stderr from now on."""
    found = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return found
