"""How the processes of a SuperExec learn that they have to end, or that their parent is gone."""

from __future__ import annotations

import os
import select
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with(parent: int, signum: signal.Signals) -> None:
    """Have the kernel send this process `signum` when `parent`, which started it, dies; or now if it is dead.

    Linux only. Elsewhere a killed parent is noticed by its children the next time they look.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)


class Lifeline:
    """A pipe that nobody writes to: its end tells every child of a SuperExec at once to finish.

    The main process holds the only write end. It is cut on purpose when the SuperExec shuts down, and by the
    kernel when it is killed.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def fileno(self) -> int:
        """The descriptor that becomes readable when the lifeline is cut."""
        return self._read

    def hold(self) -> None:
        """Keep only the child's end: for children, once, at their start."""
        self.cut()

    def cut(self) -> None:
        """Tell the children to finish. May be called again, and from a signal handler."""
        write, self._write = self._write, -1
        if write >= 0:
            os.close(write)

    def is_cut(self) -> bool:
        """Whether the main process wants its children to finish, or is gone."""
        return bool(select.select([self._read], [], [], 0)[0])
