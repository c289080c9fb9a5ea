"""The seat of a SuperExec: a file below its home that one process of its name holds at a time.

The kernel frees it when that process ends, however it ends. So whoever takes the seat knows that the former holder is
gone, and who that was: the attempts that it held need not wait for the end of their leases.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from urllib.parse import quote

from flq.errors import LocalError

PATIENCE_SECONDS = 5.0
"""How long to wait for a former holder that is just about to end."""

_RETRY_SECONDS = 0.05


class Seat:
    """Taken when it is made. Raises `LocalError` if another SuperExec holds it."""

    def __init__(self, home: Path, name: str, *, patience: float = PATIENCE_SECONDS) -> None:
        folder = home / "superexec"
        folder.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(folder / quote(name, safe=""), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        give_up = time.monotonic() + patience
        while not self._take():
            if time.monotonic() > give_up:
                self.leave()
                raise LocalError(
                    f"another SuperExec named {name!r} is at work below {home}",
                    hint="give this one a name of its own: flq superexec --name NAME",
                )
            time.sleep(_RETRY_SECONDS)
        self.former = os.pread(self._descriptor, 64, 0).decode(errors="replace").strip() or None
        """The process id, a uuid in hex, of the SuperExec that held the seat before."""

    def sit(self, process_id: str) -> None:
        """Write down who holds the seat: once nothing is left to do for the former holder."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, process_id.encode(), 0)

    def leave(self) -> None:
        """Close the file. A forked child does so at its start: it would hold the seat beyond the end of its parent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _take(self) -> bool:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
