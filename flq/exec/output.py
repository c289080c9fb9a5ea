"""The output of a ServerApp: bytes in, log lines out."""

from __future__ import annotations

import os
from datetime import UTC, datetime

from flq.exec.handover import MARK
from flq.wire.lines import LineSplitter
from flq.wire.runs import LogLine

_READ_BYTES = 64 << 10
_LEVELS = frozenset({"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"})


class Output:
    """Reads a non-blocking pipe and cuts what comes into lines."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines = LineSplitter()
        self.ended = False

    def read(self) -> list[LogLine]:
        """The lines that have come in, at most some hundred of them. Sets `ended` when there will be none."""
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return []
        self.ended = not data
        lines = self._lines.feed(data)
        if self.ended:
            lines += self._lines.flush()
        return [_line(text) for text in lines]


def _line(text: str) -> LogLine:
    level = "INFO"
    if text.startswith(MARK):
        _, named, rest = [*text.split(MARK, 2), "", ""][:3]
        if named in _LEVELS:
            level, text = named, rest
    return LogLine(at=datetime.now(UTC), source="serverapp", level=level, text=text)
