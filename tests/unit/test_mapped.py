"""Files as memory."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from flq.errors import DatabaseUnreachable
from flq.wire import mapped


def lost(view: memoryview) -> None:
    part = view[1:]  # the traceback holds it
    raise DatabaseUnreachable(f"after {len(part)} bytes")


def test_what_is_written_is_in_the_file(tmp_path: Path):
    with (tmp_path / "file").open("x+b") as file:
        mapped.writable(file, 3)[:] = b"abc"
    assert (tmp_path / "file").read_bytes() == b"abc"
    with (tmp_path / "file").open("rb") as file:
        view = mapped.readable(file)
        assert view.readonly
        assert bytes(view) == b"abc"


def test_an_empty_file(tmp_path: Path):
    with (tmp_path / "file").open("x+b") as file:
        assert len(mapped.writable(file, 0)) == len(mapped.readable(file)) == 0


def test_an_error_that_holds_a_part_of_the_memory_stays_what_it_is(tmp_path: Path):
    with (tmp_path / "file").open("x+b") as file:
        with pytest.raises(DatabaseUnreachable):
            lost(mapped.writable(file, 3))
        with pytest.raises(DatabaseUnreachable):
            lost(mapped.readable(file))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small file system")
def test_a_full_disk_is_an_error_and_no_signal(tmp_path: Path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], check=True)
    try:
        with (tmp_path / "file").open("x+b") as file, pytest.raises(OSError, match="No space left") as caught:
            mapped.writable(file, 1 << 20)
        assert caught.value.errno == errno.ENOSPC
    finally:
        subprocess.run(["umount", tmp_path], check=True)
