"""The output of apps: bytes in, clean lines out."""

from __future__ import annotations

MAX_LINE_BYTES = 8 << 10
"""Longer lines are cut into pieces of this size."""


class LineSplitter:
    """Cuts a stream of bytes into lines of text that any UTF-8 store takes."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """The lines that `data` completes."""
        *complete, self._rest = (self._rest + data).split(b"\n")
        lines = [text for line in complete for text in _pieces(line)]
        self._rest = _drawn_last(self._rest)
        while len(self._rest) > MAX_LINE_BYTES:
            cut = _cut(self._rest)
            lines.append(_text(self._rest[:cut]))
            self._rest = self._rest[cut:]
        return lines

    def flush(self) -> list[str]:
        """What came after the last line end, if anything did."""
        rest, self._rest = self._rest, b""
        return _pieces(rest) if rest else []


def clean(text: str) -> str:
    """`text` without what PostgreSQL refuses: NUL and halves of surrogate pairs."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\ufffd")


def split_text(text: str) -> list[str]:
    """The lines of a text that came as text, such as a log record."""
    splitter = LineSplitter()
    return splitter.feed(clean(text).encode()) + splitter.flush() or [""]


def _pieces(line: bytes) -> list[str]:
    line = _drawn_last(line).rstrip(b"\r")
    pieces = []
    while len(line) > MAX_LINE_BYTES:
        cut = _cut(line)
        pieces.append(_text(line[:cut]))
        line = line[cut:]
    return [*pieces, _text(line)]


def _drawn_last(line: bytes) -> bytes:
    """What a terminal would show in the end: progress bars draw themselves anew after each carriage return."""
    return line[line.rstrip(b"\r").rfind(b"\r") + 1 :]


def _cut(line: bytes) -> int:
    """Where to cut: not within a character, if these are UTF-8 characters at all."""
    for back in range(4):
        if line[MAX_LINE_BYTES - back] & 0xC0 != 0x80:  # noqa: PLR2004 - the mark of a continuation byte
            return MAX_LINE_BYTES - back
    return MAX_LINE_BYTES


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").replace("\0", "\ufffd")
