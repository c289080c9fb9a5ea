"""The output of a ServerApp: bytes in, log lines out."""

from __future__ import annotations

import os
from datetime import UTC, datetime

from flq.exec.handover import MARK
from flq.wire.runs import LogLine

MAX_LINE_BYTES = 8 << 10
"""Longer lines are cut into pieces of this size."""

_READ_BYTES = 64 << 10
_LEVELS = frozenset({"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"})


class Output:
    """Reads a non-blocking pipe and cuts what comes into lines."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._rest = b""
        self.ended = False

    def read(self) -> list[LogLine]:
        """The lines that have come in, at most some hundred of them. Sets `ended` when there will be none."""
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return []
        self.ended = not data
        *whole, self._rest = (self._rest + data).split(b"\n")
        while len(self._rest) > MAX_LINE_BYTES:
            whole.append(self._rest[:MAX_LINE_BYTES])
            self._rest = self._rest[MAX_LINE_BYTES:]
        if self.ended and self._rest:
            whole.append(self._rest)
            self._rest = b""
        return [_line(piece) for line in whole for piece in _pieces(line)]


def _pieces(line: bytes) -> list[bytes]:
    # A progress bar draws itself over and over after a carriage return: keep what a terminal would show.
    line = line.rstrip(b"\r").rpartition(b"\r")[2]
    return [line[start : start + MAX_LINE_BYTES] for start in range(0, len(line), MAX_LINE_BYTES)] or [b""]


def _line(data: bytes) -> LogLine:
    text = data.decode("utf-8", "replace").replace("\0", "\ufffd")
    level = "INFO"
    if text.startswith(MARK):
        _, named, rest = [*text.split(MARK, 2), "", ""][:3]
        if named in _LEVELS:
            level, text = named, rest
    return LogLine(at=datetime.now(UTC), source="serverapp", level=level, text=text)
