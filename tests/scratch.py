"""Where tests put their temporary files: into memory, where there is room for them.

Hundreds of databases are made and dropped, and whole federations run with `fsync`: 10 GB that a disk would be asked to
keep, and that nobody wants after the tests.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MEMORY = Path("/dev/shm")
ROOM_BYTES = 4 << 30
"""The tests have used 2 GB at most at a time."""

CHOSEN = ("TMPDIR", "TEMP", "TMP")
"""With one of these set it is for the user to say where temporary files go."""


@contextmanager
def in_memory() -> Iterator[None]:
    """Have this process and those it starts put temporary files into memory, until the end of the block."""
    if any(name in os.environ for name in CHOSEN) or not _has_room(MEMORY):
        yield
        return
    # errors at the end are those of a process that writes as it ends: the tests themselves look for such processes
    with tempfile.TemporaryDirectory(prefix="flq-", dir=MEMORY, ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o1777)  # PostgreSQL runs as another user if the tests run as root
        os.environ["TMPDIR"], tempfile.tempdir = folder, None
        try:
            yield
        finally:
            del os.environ["TMPDIR"]
            tempfile.tempdir = None


def _has_room(folder: Path) -> bool:
    """Whether files can be kept and run there, and neither the folder nor the machine is short of memory."""
    if not os.access(folder, os.W_OK | os.X_OK) or os.statvfs(folder).f_flag & os.ST_NOEXEC:
        return False
    available = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    free = min(shutil.disk_usage(folder).free, int(available[1]) << 10 if available else 0)
    return free >= ROOM_BYTES
