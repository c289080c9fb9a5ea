"""Frames between a SuperNode and its ClientApp workers: a JSON header and a raw body, each with its length in front.

No pickle: a worker runs code that others wrote, so what it sends is checked like any other input.
"""

from __future__ import annotations

import json
import socket
import struct
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flq.errors import WireError

MAX_HEADER_BYTES = 16 << 20
MAX_BODY_BYTES = 1 << 30
"""Bodies are manifests; arrays of any size travel as files beside the socket."""

JOINED_BYTES = 256 << 10
"""A body up to this goes into one buffer with its header: a copy costs less than waking the other side twice."""

RECEIVE_BYTES = 256 << 10

_MAGIC = b"flq1"
_encoded = json.JSONEncoder(separators=(",", ":")).encode
_PREFIX = struct.Struct("<4sIQ")


@dataclass(frozen=True, slots=True)
class Frame:
    """One message on the socket: `header["op"]` says what it is."""

    header: Mapping[str, Any]
    body: bytes = field(default=b"", repr=False)

    @property
    def op(self) -> str:
        """What the frame asks or tells."""
        return str(self.header.get("op", ""))


def pack(header: Mapping[str, Any], body: bytes | memoryview = b"") -> list[bytes | memoryview]:
    """The buffers to send, in order; the body is not copied."""
    head = _encoded(header).encode()
    prefix = _PREFIX.pack(_MAGIC, len(head), len(body))
    return [prefix + head, body] if len(body) else [prefix + head]


class FrameReader:
    """Puts frames together from the pieces that a non-blocking socket yields."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._need = _PREFIX.size

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes. Raises `WireError` on anything that is no frame."""
        self._buffer += data
        frames = []
        while len(self._buffer) >= self._need:
            frame = self._next()
            if frame is None:
                break
            frames.append(frame)
        return frames

    def _next(self) -> Frame | None:
        head, body = lengths(self._buffer[: _PREFIX.size])
        start, end = _PREFIX.size + head, _PREFIX.size + head + body
        if len(self._buffer) < end:
            self._need = end
            return None
        with memoryview(self._buffer) as view:
            frame = Frame(header_of(view[_PREFIX.size : start]), bytes(view[start:end]))
        del self._buffer[:end]
        self._need = _PREFIX.size
        return frame


def lengths(prefix: bytes | bytearray) -> tuple[int, int]:
    """The lengths of header and body. Raises `WireError`, before anything is allocated for them."""
    magic, head, body = _PREFIX.unpack(prefix)
    if magic != _MAGIC or head > MAX_HEADER_BYTES or body > MAX_BODY_BYTES:
        raise WireError("a frame does not start like one, or is too long")
    return head, body


def header_of(data: bytes | bytearray | memoryview) -> Mapping[str, Any]:
    """Parse a header. Raises `WireError`."""
    try:
        header = json.loads(str(data, "utf-8"))
    except (ValueError, RecursionError) as exc:
        raise WireError("the header of a frame is no JSON") from exc
    if not isinstance(header, dict):
        raise WireError("the header of a frame is no object")
    return header


class FrameStream:
    """Reads frames from a blocking socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._reader = FrameReader()
        self._frames: deque[Frame] = deque()

    def receive(self) -> Frame | None:
        """Wait for the next frame; None once the other side has closed the socket. Raises `WireError`."""
        while not self._frames:
            data = self._socket.recv(RECEIVE_BYTES)
            if not data:
                return None
            self._frames.extend(self._reader.feed(data))
        return self._frames.popleft()


def send(sock: socket.socket, header: Mapping[str, Any], body: bytes | memoryview = b"") -> None:
    """Write one frame to a blocking socket."""
    buffers = pack(header, body)
    for buffer in [b"".join(buffers)] if len(body) <= JOINED_BYTES else buffers:
        sock.sendall(buffer)
