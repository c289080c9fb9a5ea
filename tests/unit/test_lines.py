"""Bytes of apps as lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flq.wire.lines import MAX_LINE_BYTES, LineSplitter, clean, split_text


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        ([b"one\ntwo\n"], ["one", "two"]),
        ([b"o", b"ne", b"\n", b"two"], ["one", "two"]),
        ([b"\n\na\n"], ["", "", "a"]),
        ([b"windows\r\n"], ["windows"]),
        ([b" 10%\r 20%", b"\r 30%\r", b"100%\n"], ["100%"]),
        ([b"caf\xc3", b"\xa9\n"], ["café"]),
        ([b"\xff\x00\n"], ["\ufffd\ufffd"]),
    ],
)
def test_lines(pieces, lines):
    splitter = LineSplitter()
    found = [line for piece in pieces for line in splitter.feed(piece)]
    assert found + splitter.flush() == lines


def test_long_lines_are_cut_between_characters():
    splitter = LineSplitter()
    text = "x" + "é" * MAX_LINE_BYTES
    lines = splitter.feed(text.encode()) + splitter.flush()
    assert "".join(lines) == text
    assert all(len(line.encode()) <= MAX_LINE_BYTES for line in lines)
    assert splitter.feed(text.encode() + b"\n") == lines


@given(st.lists(st.text(st.characters(exclude_characters="\r\n\0", codec="utf-8"), max_size=20)), st.integers(1, 7))
def test_any_text_comes_out_as_it_went_in(lines, size):
    data = "".join(f"{line}\n" for line in lines).encode()
    splitter = LineSplitter()
    assert [line for at in range(0, len(data), size) for line in splitter.feed(data[at : at + size])] == lines


def test_texts_that_postgres_would_refuse():
    assert clean("a\0b\ud800") == "a\ufffdb?"
    assert split_text("one\ntwo\ud800") == ["one", "two?"]
    assert split_text("") == [""]
