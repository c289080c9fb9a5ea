"""The embedded Valkey, which carries Celery's messages. They are hints: what is true is in Postgres."""

from __future__ import annotations

import socket
from pathlib import Path

from flq.local import binaries
from flq.local.layout import Layout
from flq.local.process import ChildSpec
from flq.settings import Embedded

NAME = "valkey"

_ANSWER_PATIENCE = 0.5


def spec(layout: Layout, embedded: Embedded) -> ChildSpec:
    """The server, at a socket only; its data survives a kill but for the last second."""

    def prepare() -> None:
        layout.valkey_data.mkdir(exist_ok=True, mode=0o700)
        layout.valkey_socket.unlink(missing_ok=True)  # so that nobody but the new server can answer there

    def ready(_pid: int) -> bool:
        return answers(layout.valkey_socket)

    return ChildSpec(
        name=NAME,
        argv=(
            str(binaries.valkey(embedded)),
            *("--port", "0", "--unixsocket", str(layout.valkey_socket), "--unixsocketperm", "700"),
            *("--dir", str(layout.valkey_data), "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
            *("--maxmemory-policy", "noeviction"),
            *("--hz", "2"),  # housekeeping turns a second: an idle federation should sleep
        ),
        log=layout.log(NAME),
        env={},
        ready=ready,
        prepare=prepare,
    )


def answers(path: Path) -> bool:
    """Whether a server at the socket `path` takes commands; while it loads its data it does not."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_ANSWER_PATIENCE)
        try:
            client.connect(str(path))
            client.sendall(b"PING\r\n")
            return client.recv(16).startswith(b"+PONG")
        except OSError:
            return False
