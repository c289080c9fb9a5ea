"""Files as memory: large payloads are read from them and written into them without a copy.

A mapping is not closed but let go of: what fails while it is used may hold parts of it in its traceback, and closing it
then would raise a `BufferError` in the place of the error.
"""

from __future__ import annotations

import mmap
import os
from typing import IO


def readable(file: IO[bytes]) -> memoryview:
    """The content of a file that was opened to be read."""
    size = os.fstat(file.fileno()).st_size
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b"")


def writable(file: IO[bytes], size: int) -> memoryview:
    """`size` bytes to be written into, as the content of an empty file that was opened to be read and written.

    The room is set aside first: raises `OSError` if there is none, where a mapping without it would end the process by
    SIGBUS.
    """
    if not size:
        return memoryview(bytearray())
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:  # macOS
        os.ftruncate(file.fileno(), size)
    return memoryview(mmap.mmap(file.fileno(), size))
