"""Celery Flower, the monitoring UI of Celery, on a federation's broker."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from importlib.util import find_spec

from flq.errors import PortTaken, UsageError
from flq.exec import jobs
from flq.exec.celery_app import create_app


def run(broker: str, *, port: int, address: str = "127.0.0.1", ready: Callable[[], None] = lambda: None) -> int:
    """Serve Celery Flower until interrupted; returns the exit code.

    Raises `UsageError` if it is not installed, and `PortTaken` if it cannot listen there; `ready` is called before it
    does.

    The broker's address stays in this process: it may hold a password. Without a login of its own Celery Flower
    refuses its HTTP API, which on the loopback interface is the caution of another setting.
    """
    if find_spec("flower") is None:
        raise UsageError("Celery Flower is not installed", hint="pip install 'flq[monitor]'")
    if address in {"127.0.0.1", "::1", "localhost"}:
        os.environ["FLOWER_UNAUTHENTICATED_API"] = "1"
    app = create_app(broker)
    jobs.register(app, _launches_nothing)
    _insist_on_port(address, port)
    ready()
    app.start(argv=["flower", f"--address={address}", f"--port={port}", "--logging=warning"])
    return 0


def _insist_on_port(address: str, port: int) -> None:
    """Look whether Celery Flower will be able to listen: it would end with a traceback."""
    try:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, place in found:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(place)
                except OSError as exc:
                    if exc.errno != errno.EADDRNOTAVAIL or len(found) == 1:  # localhost may have no IPv6
                        raise
    except OSError as exc:
        raise PortTaken(
            f"Celery Flower cannot listen on {address} port {port}: {exc.strerror}",
            hint="choose another one: flq monitor --port N, or --address",
        ) from exc


def _launches_nothing(**_: object) -> str:
    raise NotImplementedError("a monitor runs no jobs")
