"""One child process of the supervisor: how it is started, when it is ready, how it is stopped.

The supervisor has one thread and forks only from it: the parent-death signal, by which no child outlives a
supervisor that is killed, fires when the *thread* that forked ends; and code between fork and exec is safe only
without other threads. There is no such signal outside Linux: there a killed supervisor leaves its processes
running, and the next one stops them.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import flq
from flq import settings
from flq.errors import ServerFailed
from flq.local.identity import SELF, Identity
from flq.local.layout import rotate
from flq.local.state import ProcessState, ProcessStatus, Remain

Phase = Literal["waiting", "starting", "running", "stopping", "ended"]

STABLE = 10.0
"""Seconds after which a child that ended counts as one that had worked: its former failures are forgotten."""

TOO_OFTEN = 5
"""So many failures without a stable time between them make a child "failed". It is still tried, but seldom."""

_FIRST_DELAY = 0.25
_LONGEST_DELAY = 30.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """What the supervisor has to know about a child.

    A child is started when what it `needs` runs. It is ready when `ready(pid)` says so, or, without that, when it
    writes to the pipe that it is handed (see `settings.announce_ready`). A child that is to run `once` is a step
    of the start: ready when it has exited with 0. `patience` is how long it may take to become ready, `grace`
    how long to end after `stop_signal`; both in seconds. `death_signal` is what it gets when the supervisor is
    killed. `prepare` runs before each start, `finish` after a step has succeeded, `undo` after one has not.
    """

    name: str
    argv: tuple[str, ...]
    log: Path
    env: Mapping[str, str]
    needs: frozenset[str] = frozenset()
    once: bool = False
    ready: Callable[[int], bool] | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    death_signal: signal.Signals = signal.SIGTERM
    grace: float = 15.0
    patience: float = 60.0
    identity: Identity = SELF
    prepare: Callable[[], None] | None = None
    finish: Callable[[], None] | None = None
    undo: Callable[[], None] | None = None


def python(*arguments: str) -> tuple[str, ...]:
    """The command for a Python process of ours; it does not look for modules in its working folder."""
    return (sys.executable, "-P", *arguments)


def python_environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    """This process's environment with `changes`, for a Python process of ours.

    It finds flq where this process found it, also if that is a checkout.
    """
    environ = settings.child_environment(changes)
    root = Path(flq.__file__).resolve().parents[1]
    if root.name not in {"site-packages", "dist-packages"}:
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), environ.get("PYTHONPATH"))))
    return environ


@dataclass(slots=True)
class Child:
    """A child and what happened to it. Moved through its phases by the supervisor.

    `waiting` until it is `due`, then `starting`, `running`, `stopping`; `ended` is for good. `deadline` is the end
    of its patience or grace. Times are those of `time.monotonic()`.
    """

    spec: ChildSpec
    phase: Phase = "waiting"
    due: float = 0.0
    deadline: float | None = None
    failures: int = 0
    restarts: int = 0
    replacing: bool = False
    since: datetime = field(default_factory=lambda: datetime.now(UTC))
    ready_pipe: int | None = None
    _process: subprocess.Popen[bytes] | None = None
    _birth: str = ""
    _log_start: int = 0
    _ready_at: float | None = None

    @property
    def name(self) -> str:
        """The name of the child."""
        return self.spec.name

    @property
    def pid(self) -> int | None:
        """The pid of the living process."""
        return self._process.pid if self._process else None

    @property
    def settled(self) -> bool:
        """Whether those who need this child can start."""
        return self.phase == ("ended" if self.spec.once else "running")

    def start(self) -> None:
        """Start the process. Raises what `prepare` raises, and `ServerFailed` if it cannot be started."""
        spec = self.spec
        if spec.prepare:
            spec.prepare()
        rotate(spec.log)
        announces = spec.ready is None and not spec.once
        reader, writer = os.pipe() if announces else (None, None)
        env = {**spec.env, "FLQ_READY_FD": str(writer)} if announces else dict(spec.env)
        try:
            self._process = self._spawn(env, (writer,) if writer is not None else ())
        except (OSError, subprocess.SubprocessError) as exc:
            _close(reader)
            raise ServerFailed(f"{spec.name} cannot be started: {exc}") from exc
        finally:
            _close(writer)
        if reader is not None:
            os.set_blocking(reader, False)
        self.ready_pipe = reader
        self._birth = birth(self._process.pid)
        self._ready_at = None
        self._enter("starting", deadline=time.monotonic() + spec.patience)

    def is_ready(self) -> bool:
        """Whether the process, which is starting, does its work now."""
        if self.spec.once or self._process is None:
            return False
        if self.spec.ready is not None:
            return self.spec.ready(self._process.pid)
        if self.ready_pipe is None:
            return False
        try:
            said = os.read(self.ready_pipe, 16)
        except BlockingIOError:
            return False
        # nothing at all is the end: the child closed the pipe, so it will not become ready
        self._close_pipe()
        return said != b""

    def work(self) -> None:
        """The process is ready."""
        self._close_pipe()
        self._ready_at = time.monotonic()
        self._enter("running")

    def exit_code(self) -> int | None:
        """The exit code of the process if it has ended since the last look; negative is a signal."""
        if self._process is None:
            return None
        code = self._process.poll()
        if code is not None:
            self._process = None
            self._close_pipe()
        return code

    def stop(self) -> None:
        """Ask the process to end."""
        if self._process is None:
            self._enter("ended")
        elif self.phase != "stopping":
            self._process.send_signal(self.spec.stop_signal)
            self._enter("stopping", deadline=time.monotonic() + self.spec.grace)

    def kill(self) -> None:
        """End the process and all of its session that are still in its group."""
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):  # it has just ended
                os.killpg(self._process.pid, signal.SIGKILL)
        self.deadline = None

    def replace(self, spec: ChildSpec) -> None:
        """Go on with another specification: the process is asked to end, and the next one is started by it."""
        self.spec = spec
        self.failures = 0
        self.due = 0.0
        if self._process is not None:
            self.replacing = True
            self.stop()

    def end(self) -> None:
        """The process has ended for good."""
        self._enter("ended")

    def retry(self) -> None:
        """The process has ended, and is to be started again: at once if on demand, else after a while."""
        now = time.monotonic()
        if self.replacing:
            self.due = now
        else:
            worked = self._ready_at is not None and now - self._ready_at > STABLE
            self.failures = 1 if worked else self.failures + 1
            self.restarts += 1
            self.due = now + min(_FIRST_DELAY * 2 ** (self.failures - 1), _LONGEST_DELAY)
        self.replacing = False
        self._ready_at = None
        self._enter("waiting")

    def status(self) -> ProcessStatus:
        """What is told about the child."""
        return ProcessStatus(
            name=self.name,
            pid=self.pid,
            state=self._state(),
            restarts=self.restarts,
            since=self.since,
            log=self.spec.log,
        )

    def remain(self) -> Remain | None:
        """What the next supervisor must know if this one is killed."""
        pid = self.pid
        return Remain(self.name, pid, self._birth, self.spec.death_signal) if pid is not None else None

    def last_words(self, lines: int = 6) -> str:
        """The end of what the process wrote to its log since it was started."""
        try:
            with self.spec.log.open("rb") as log:
                log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - 4096))
                written = log.read().decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(written.strip().splitlines()[-lines:])

    def _spawn(self, env: Mapping[str, str], inherited: tuple[int, ...]) -> subprocess.Popen[bytes]:
        spec, parent = self.spec, os.getpid()

        def become() -> None:
            spec.identity.enter()
            _die_with_parent(spec.death_signal, parent)  # last: a change of identity clears it

        with spec.log.open("ab") as log:
            self._log_start = log.tell()
            return subprocess.Popen(
                spec.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                cwd="/",
                pass_fds=inherited,
                start_new_session=True,
                preexec_fn=become,  # noqa: PLW1509 - this process has no threads
            )

    def _enter(self, phase: Phase, *, deadline: float | None = None) -> None:
        self.phase = phase
        self.deadline = deadline
        self.since = datetime.now(UTC)

    def _close_pipe(self) -> None:
        _close(self.ready_pipe)
        self.ready_pipe = None

    def _state(self) -> ProcessState:
        if self.phase == "ended":
            return "stopped"
        if self.failures >= TOO_OFTEN:
            return "failed" if self.phase != "running" else "running"
        if self.phase in {"waiting", "starting"}:
            return "restarting" if self.restarts else "starting"
        return "restarting" if self.replacing else "running"


def birth(pid: int) -> str:
    """When the process was started, as a text that tells it from others of its pid; empty if there is none."""
    if sys.platform != "linux":
        ps = ["ps", "-o", "lstart=", "-p", str(pid)]
        return subprocess.run(ps, capture_output=True, text=True, check=False).stdout.strip()
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
    state, start_time = after_name[0], after_name[19]
    return "" if state in "ZX" else f"{boot} {start_time}"


def _die_with_parent(number: int, parent: int) -> None:
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))
    if os.getppid() != parent:  # it was killed before the line above
        os._exit(1)


def _close(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)
