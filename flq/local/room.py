"""Room on the disk below a home: PostgreSQL stops when there is none, and says so in its log only."""

from __future__ import annotations

import shutil
from pathlib import Path

from flq.errors import DiskFull

FRESH_BYTES = 96 << 20
"""What a new federation takes, with PostgreSQL's first journal segments."""

LOW_BYTES = 18 << 20
"""PostgreSQL's journal grows by segments of 16 MB."""


def insist(home: Path, *, fresh: bool) -> None:
    """Raise `DiskFull` if a federation below `home`, a new one if `fresh`, could not start."""
    free = _free(home)
    needed = FRESH_BYTES if fresh else LOW_BYTES
    if free is not None and free < needed:
        raise DiskFull(
            f"the disk of {home} is full: {free >> 20} MB are free, and a federation needs {needed >> 20} MB to start",
            hint="make room, or set FLQ_HOME to a folder on another disk",
        )


def shortage(home: Path) -> str | None:
    """What to do if the disk below `home` is as good as full; None if it is not."""
    free = _free(home)
    if free is None or free >= LOW_BYTES:
        return None
    return f"the disk of {home} is full ({free >> 20} MB are free): make room there"


def _free(home: Path) -> int | None:
    try:
        return shutil.disk_usage(home).free
    except OSError:
        return None
