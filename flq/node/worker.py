"""The process in which ClientApps run: `python -m flq.node.worker <socket> <parent>`.

It is started by a SuperNode, says that it is ready once numpy and flq are imported, and then does what it is given.
It dies with its SuperNode: at once on Linux, elsewhere when it next reads from its socket.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from typing import Any

from flq.failpoints import reach
from flq.node.frames import FrameStream, send
from flq.node.protocol import DONE, LOG, READY, TASK, to_assignment, to_header

PR_SET_PDEATHSIG = 1


class Channel:
    """The worker's end of the socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._lock = threading.Lock()
        self._owner = os.getpid()
        # A child that the app forks must not hold the socket open: its end is how a SuperNode knows of ours.
        os.register_at_fork(after_in_child=sock.close)

    @property
    def ours(self) -> bool:
        """Whether this is the worker itself and not a child that the app has forked."""
        return os.getpid() == self._owner

    def send(self, header: Mapping[str, Any], body: bytes = b"") -> None:
        """Send a frame. Frames of several threads do not mix."""
        with self._lock:
            send(self._socket, header, body)


class ChannelHandler(logging.Handler):
    """Sends what the app logs to the SuperNode, with its level; in forked children to stderr."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        try:
            text = self.format(record)
            if record.name not in {"root", "flq.app"}:
                text = f"{record.name}: {text}"
            if self._channel.ours:
                self._channel.send({"op": LOG, "level": record.levelname, "text": text})
            else:
                sys.stderr.write(f"{record.levelname} {text}\n")
        except Exception:  # noqa: BLE001 - what logging itself does with errors of a handler
            self.handleError(record)


def main(arguments: list[str]) -> int:
    """Serve tasks until the SuperNode closes the socket."""
    descriptor, parent = int(arguments[0]), int(arguments[1])
    _die_with(parent)
    os.set_inheritable(descriptor, False)  # noqa: FBT003 - it takes no keywords
    faulthandler.enable()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    with socket.socket(fileno=descriptor) as sock:
        channel = Channel(sock)
        root = logging.getLogger()
        root.addHandler(ChannelHandler(channel))
        root.setLevel(logging.INFO)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            _serve(sock, channel)
    return 0


def _serve(sock: socket.socket, channel: Channel) -> None:
    from flq.node.execution import Executor  # imports numpy, which takes longer than all the rest

    executor = Executor()
    frames = FrameStream(sock)
    channel.send({"op": READY})
    while (frame := frames.receive()) is not None:
        if frame.op != TASK:
            raise SystemExit(f"an unexpected frame {frame.op!r}")
        done, manifest = executor.perform(to_assignment(frame.header), frame.body)
        _flush()
        reach("clientapp.before-reply")
        channel.send(to_header(DONE, done), manifest)


def _flush() -> None:
    """See to it that all output is in the pipes before the answer is in the socket."""
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        with contextlib.suppress(Exception):  # the app may have put anything there
            stream.flush()  # type: ignore[union-attr]
    _libc.fflush(None)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its SuperNode dies."""
    if sys.platform == "linux":
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the kernel knew
            os._exit(1)


_libc = ctypes.CDLL(None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
