"""Celery Flower, the monitoring UI of Celery, on a federation's broker."""

from __future__ import annotations

import os
from importlib.util import find_spec

from flq.errors import UsageError
from flq.exec import jobs
from flq.exec.celery_app import create_app


def run(broker: str, *, port: int, address: str = "127.0.0.1") -> int:
    """Serve Celery Flower until interrupted; returns the exit code. Raises `UsageError` if it is not installed.

    The broker's address stays in this process: it may hold a password. Without a login of its own Celery Flower
    refuses its HTTP API, which on the loopback interface is the caution of another setting.
    """
    if find_spec("flower") is None:
        raise UsageError("Celery Flower is not installed", hint="pip install 'flq[monitor]'")
    if address in {"127.0.0.1", "::1", "localhost"}:
        os.environ["FLOWER_UNAUTHENTICATED_API"] = "1"
    app = create_app(broker)
    jobs.register(app, _launches_nothing)
    app.start(argv=["flower", f"--address={address}", f"--port={port}", "--logging=warning"])
    return 0


def _launches_nothing(**_: object) -> str:
    raise NotImplementedError("a monitor runs no jobs")
