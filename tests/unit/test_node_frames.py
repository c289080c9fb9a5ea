"""What a SuperNode and its workers say to each other."""

from __future__ import annotations

import json
import socket
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flq.errors import WireError
from flq.node.frames import JOINED_BYTES, MAX_BODY_BYTES, FrameReader, FrameStream, pack, send
from flq.node.protocol import DONE, Done, capped, to_assignment, to_done, to_header
from flq.wire.status import ResultStatus

HASH = "ab" * 32


@given(st.lists(st.tuples(st.dictionaries(st.text(), st.integers()), st.binary())), st.integers(1, 50))
def test_frames_are_put_together_from_any_pieces(frames, size):
    stream = b"".join(bytes(buffer) for header, body in frames for buffer in pack(header, body))
    reader = FrameReader()
    pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
    found = [frame for piece in pieces for frame in reader.feed(piece)]
    assert [(frame.header, frame.body) for frame in found] == frames


@pytest.mark.parametrize(
    "stream",
    [
        b"GET / HTTP/1.1\r\nHost: x",
        struct.pack("<4sIQ", b"flq1", 2, MAX_BODY_BYTES + 1),
        struct.pack("<4sIQ", b"flq1", 1 << 30, 0),
        struct.pack("<4sIQ", b"flq1", 2, 0) + b"[]",
        struct.pack("<4sIQ", b"flq1", 4, 0) + b"\xff\xfe\xfd{",
        struct.pack("<4sIQ", b"flq1", 200_000, 0) + b"[" * 200_000,
    ],
)
def test_rubbish_is_refused(stream):
    with pytest.raises(WireError):
        FrameReader().feed(stream)


def send_all(sock: socket.socket, bodies: list[bytes]) -> None:
    for body in bodies:
        send(sock, {"op": "x"}, body)


def test_blocking_sockets():
    one, other = socket.socketpair()
    large = b"x" * (JOINED_BYTES + 1)
    bodies = [b"body", b"", large, b"last"]
    with one, other:
        sender = threading.Thread(target=send_all, args=(one, bodies))
        sender.start()
        stream = FrameStream(other)
        frames = [stream.receive() for _ in bodies]
        sender.join()
        assert [(frame.op, frame.body) for frame in frames if frame] == [("x", body) for body in bodies]
        one.sendall(struct.pack("<4sIQ", b"flq1", 2, 0))
        one.close()
        assert stream.receive() is None


def done(**changes: object) -> dict[str, object]:
    content = Done(
        number=3,
        status=ResultStatus.OK,
        started_at=1.0,
        ended_at=2.0,
        objects=[HASH],
        written=[],
        metrics={"a": 1, "b": [0.5], "c": float("inf")},
        staged=True,
    )
    return {**json.loads(json.dumps(to_header(DONE, content))), **changes}


def test_an_answer_there_and_back():
    found = to_done(done())
    assert found.metrics == {"a": 1, "b": [0.5], "c": float("inf")}
    assert (found.number, found.objects, found.staged) == (3, [HASH], True)


@pytest.mark.parametrize(
    "changes",
    [
        {"number": "three"},
        {"status": "expired"},
        {"status": "splendid"},
        {"objects": ["../../etc/passwd"]},
        {"written": ["abcd"]},
        {"metrics": [1]},
        {"metrics": {"a": "b"}},
        {"objects": None},
        {"started_at": None},
    ],
)
def test_answers_of_workers_are_checked(changes):
    with pytest.raises(WireError):
        to_done(done(**changes))


def test_frames_that_lack_fields():
    for read in (to_done, to_assignment):
        with pytest.raises(WireError):
            read({"number": 1})


def test_error_texts_keep_their_beginning_and_more_of_their_end():
    text = "start " + "ä" * 50_000 + " end\0"
    cut = capped(text)
    assert len(cut.encode()) <= 16 << 10
    assert cut.startswith("start ä")
    assert cut.endswith("ä end?")
    assert capped("short") == "short"
