"""The process of a ServerApp, seen from its launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import flq
from flq import settings
from flq.exec.handover import Credentials, Report

SECRETS = ("FLQ_DSN", "FLQ_BROKER", "CELERY_BROKER_URL", "FLQ_READY_FD")
"""What a SuperExec may have in its environment and a ServerApp must not see."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class ServerAppProcess:
    """A Python process in a session of its own that has imported what a ServerApp needs, and waits for credentials.

    It may be started long before it is needed; `begin` makes it the ServerApp of one attempt. It ends by itself if
    its parent does. The caller reads `output` and `report`, non-blocking descriptors, and must call `reap`.
    """

    def __init__(self, *, threads: int) -> None:
        orders, self._orders = os.pipe()
        self.report, report = os.pipe()
        self.output, output = os.pipe()
        try:
            self._popen = subprocess.Popen(
                _command(orders, report),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,  # one pipe for both keeps the order of what was printed
                pass_fds=(orders, report),
                start_new_session=True,
                env=_environment(threads),
            )
        except BaseException:
            self._close()
            raise
        finally:
            for descriptor in (orders, report, output):
                os.close(descriptor)
        os.set_blocking(self.report, False)
        os.set_blocking(self.output, False)
        self._report = b""
        self._reaped: tuple[int, Report | None] | None = None

    @property
    def pid(self) -> int:
        """The process's id, which is that of its process group too."""
        return self._popen.pid

    def begin(self, credentials: Credentials) -> None:
        """Let the process execute an attempt."""
        orders, self._orders = self._orders, -1
        with (
            suppress(BrokenPipeError),
            os.fdopen(orders, "wb", buffering=0) as pipe,
        ):  # it has died: `ended` will say so
            pipe.write(credentials.encode())

    def ended(self) -> bool:
        """Whether the process has ended. It stays a zombie, so that its id stays its own until `reap`."""
        if hasattr(os, "waitid"):
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        return self._popen.poll() is not None  # macOS before Python 3.13

    def signal(self, signum: signal.Signals) -> None:
        """Send a signal to the process and to all that it started, unless they left its group."""
        with suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
            os.killpg(self.pid, signum)

    def read_report(self) -> bool:
        """Read what there is of the report; whether it is complete."""
        try:
            while data := os.read(self.report, 64 << 10):
                self._report += data
        except BlockingIOError:
            return False
        return True

    def reap(self) -> tuple[int, Report | None]:
        """End the process and what it left behind, and return its exit code and its report. May be called again."""
        if self._reaped is None:
            self.signal(signal.SIGKILL)
            code = self._popen.wait()
            self.read_report()
            self._close()
            self._reaped = code, Report.decode(self._report) if self._report else None
        return self._reaped

    def _close(self) -> None:
        for descriptor in (self._orders, self.report, self.output):
            if descriptor >= 0:
                os.close(descriptor)
        self._orders = -1


def _command(orders: int, report: int) -> list[str]:
    return [sys.executable, "-P", "-m", "flq.exec.serverapp", str(orders), str(report), str(os.getpid())]


def _environment(threads: int) -> dict[str, str]:
    # the order of a set of texts must not be another one in the next attempt
    usual = {**dict.fromkeys(THREAD_VARIABLES, str(threads)), "PYTHONHASHSEED": "0", **os.environ}
    environ = settings.child_environment(dict.fromkeys(SECRETS), environ=usual)
    root = Path(flq.__file__).resolve().parents[1]
    if root.name not in {"site-packages", "dist-packages"}:  # a checkout: the process finds flq where we found it
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), environ.get("PYTHONPATH"))))
    return environ
