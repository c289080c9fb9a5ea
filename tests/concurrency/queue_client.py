"""A SuperNode that trains nothing: it claims and submits until it is killed.

`python -m tests.concurrency.queue_client NODE...`, with the DSN in `FLQ_DSN`.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress

from flq.errors import Unreachable
from flq.link.fleet import DbFleet
from flq.wire.fleet import Claimed, HostedNode, NodeSpec, Reply
from flq.wire.ids import TaskId
from flq.wire.status import Verdict
from tests.integration import link_acts as act

PAUSE = 0.05
"""Between two tries of a call that the database did not answer."""


class Client:
    """Claims and submits, and repeats what nobody answered, as a SuperNode does."""

    def __init__(self, dsn: str, *names: str) -> None:
        self._specs = [NodeSpec(name=name) for name in names]
        self._process = act.process()
        self._fleet = DbFleet(dsn)
        self.verdicts: list[tuple[TaskId, Verdict]] = []
        self.interruptions = 0

    def work(self, stop: threading.Event) -> None:
        """Until `stop` is set."""
        hosted = self._connect()
        while not stop.is_set():
            claimed = self._claim(hosted)
            if not claimed.leases:
                with suppress(Unreachable):
                    self._fleet.wait(0.2)
                continue
            self._submit([act.reply(lease) for lease in claimed.leases])
        with suppress(Unreachable):
            self._fleet.disconnect()

    def _connect(self) -> list[HostedNode]:
        while True:
            try:
                return self._fleet.connect(self._process, self._specs)
            except Unreachable:
                self._again()

    def _claim(self, hosted: list[HostedNode]) -> Claimed:
        token = act.token()
        while True:
            try:
                return self._fleet.claim([node.node_id for node in hosted], per_node=2, total=10, token=token)
            except Unreachable:
                self._again()

    def _submit(self, replies: list[Reply]) -> None:
        while True:
            try:
                self.verdicts += self._fleet.submit(replies).items()
            except Unreachable:
                self._again()
            else:
                return

    def _again(self) -> None:
        self.interruptions += 1
        time.sleep(PAUSE)


if __name__ == "__main__":
    Client(os.environ["FLQ_DSN"], *sys.argv[1:]).work(threading.Event())
