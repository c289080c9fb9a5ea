"""One ClientApp worker as its SuperNode sees it: a process, a socket, and two pipes of output."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import site
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import Enum, auto
from functools import partial
from pathlib import Path
from typing import Protocol

import flq
from flq.errors import WireError
from flq.log import get
from flq.node.frames import Frame, FrameReader, pack
from flq.node.protocol import DONE, LOG, READY, TASK, Assignment, Done, to_done, to_header
from flq.node.reactor import Reactor, Timer
from flq.node.tasks import HeldTask
from flq.settings import FAILPOINTS, failpoints
from flq.wire.ids import RunId
from flq.wire.lines import LineSplitter, clean, split_text
from flq.wire.runs import LogLine

log = get(__name__)

READ_BYTES = 256 << 10

OUTPUT_BYTES = 16 << 10
"""Output read at a time, so that a flood of it does not hold up the loop."""

DRAIN_BYTES = 1 << 20
"""Output read at most when a task ends: its own is all there by then, more can only come from threads it has left."""

TERM_SECONDS = 0.5
"""Between SIGTERM and SIGKILL."""

REAP_SECONDS = 1.0
"""How long a process may take to end after it has closed its socket."""

KEPT_ERROR_LINES = 20

LINES_UNDER_WAY = 5000
"""Lines of one worker that may wait for the shipper before its output is left in the pipe."""


class State(Enum):
    """How a worker is doing."""

    STARTING = auto()
    BLANK = auto()  # ready, and of no run yet
    IDLE = auto()  # has its run's app loaded
    BUSY = auto()
    ENDING = auto()


class Listener(Protocol):
    """Who is told what happens to a worker."""

    def worker_ready(self, worker: WorkerProcess) -> None:
        """It can take its first task."""

    def worker_wrote(self, worker: WorkerProcess, run_id: RunId, lines: Sequence[LogLine]) -> None:
        """Its app has printed or logged something."""

    def worker_done(self, worker: WorkerProcess, task: HeldTask, done: Done, manifest: bytes) -> None:
        """It has ended its task."""

    def worker_gone(self, worker: WorkerProcess, task: HeldTask | None, reason: str) -> None:
        """The process is over. `task` is the one that it leaves undone."""


class WorkerProcess:
    """A worker process: started at once, ready a little later."""

    def __init__(self, number: int, reactor: Reactor, listener: Listener, threads: int) -> None:
        self.number = number
        self.state = State.STARTING
        self.run_id: RunId | None = None
        self.task: HeldTask | None = None
        self.gpus: str | None = None  # chosen with its first task
        self.idle_since = time.monotonic()
        self.was_killed = False  # from outside: no program ends by SIGKILL of its own doing
        self._reactor = reactor
        self._listener = listener
        self._served = 0
        self._reader = FrameReader()
        self._unsent: deque[memoryview] = deque()
        self._streams: dict[int, tuple[LineSplitter, str]] = {}
        self._speaker: tuple[RunId, str] | None = None
        self._last_errors: deque[str] = deque(maxlen=KEPT_ERROR_LINES)
        self._under_way = 0
        self._paused = False
        self._blocked = False
        self._kill: Timer | None = None
        self._gone = False
        self._start(threads)

    def _start(self, threads: int) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "flq.node.worker", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                process_group=0,
                env=worker_environment(threads),
            )
        self._socket.setblocking(False)  # noqa: FBT003 - it takes no keywords
        assert self._process.stdout and self._process.stderr  # noqa: S101, PT018 - both were asked for
        for file, level in ((self._process.stdout, "INFO"), (self._process.stderr, "WARNING")):
            os.set_blocking(file.fileno(), False)
            self._streams[file.fileno()] = (LineSplitter(), level)
        self._watch()

    @property
    def pid(self) -> int:
        """The process, which is also its process group."""
        return self._process.pid

    @property
    def served(self) -> int:
        """How many tasks it was given."""
        return self._served

    def assign(self, task: HeldTask, assignment: Assignment, manifest: bytes) -> None:
        """Give a ready worker its next task. `assignment.number` must be `served` + 1."""
        self.state = State.BUSY
        self.task = task
        self.run_id = task.run_id
        self._speaker = (task.run_id, task.node_name)
        self._served += 1
        self._last_errors.clear()
        self._unsent.extend(memoryview(buffer) for buffer in pack(to_header(TASK, assignment), manifest))
        self._write()

    def leave_task(self) -> HeldTask | None:
        """Take the task from the worker, which is about to be killed: nothing that it says of it counts any more."""
        task, self.task = self.task, None
        return task

    def end(self) -> None:
        """End the process group: SIGTERM now, SIGKILL half a second later. Says `worker_gone` when it is over."""
        if self.state is State.ENDING:
            return
        self._signal(signal.SIGTERM)
        self._kill = self._reactor.after(TERM_SECONDS, self.kill)

    def kill(self) -> None:
        """End the process group with SIGKILL. Says `worker_gone` when it is over."""
        self._signal(signal.SIGKILL)

    def shipped(self, lines: int) -> None:
        """Say that `lines` of its output are stored: it may write more."""
        self._under_way -= lines
        if self._paused and self._under_way < LINES_UNDER_WAY // 2:
            self._paused = False
            self._watch()

    def check(self) -> None:
        """Look whether the process has ended without closing its socket: a child that it forked may hold it open."""
        if not self._gone and self._has_exited():
            self._over()

    def _signal(self, number: signal.Signals) -> None:
        if self._gone:
            return
        self.state = State.ENDING
        self._killgroup(number)
        self._watch()

    def _killgroup(self, number: signal.Signals) -> None:
        # The process is reaped by nobody but `_over`, so its group cannot have become another's.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _watch(self) -> None:
        """Watch what the state allows: a paused worker is not read from, of an ending one only the end counts."""
        ending = self.state is State.ENDING
        events = selectors.EVENT_READ if ending or not self._paused else 0
        events |= selectors.EVENT_WRITE if self._blocked else 0
        if events:
            self._reactor.watch(self._socket.fileno(), events, self._on_socket)
        else:
            self._reactor.unwatch(self._socket.fileno())
        for descriptor in self._streams:
            if ending or self._paused:
                self._reactor.unwatch(descriptor)
            else:
                self._reactor.watch(descriptor, selectors.EVENT_READ, partial(self._on_output, descriptor))

    def _on_socket(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._write()
        if events & selectors.EVENT_READ:
            self._read()

    def _write(self) -> None:
        try:
            while self._unsent:
                sent = self._socket.sendmsg(self._unsent)
                while self._unsent and sent >= len(self._unsent[0]):
                    sent -= len(self._unsent.popleft())
                if sent:
                    self._unsent[0] = self._unsent[0][sent:]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent.clear()  # it is gone, which reading will show
        if bool(self._unsent) is not self._blocked:
            self._blocked = bool(self._unsent)
            self._watch()

    def _read(self) -> None:
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._reactor.unwatch(self._socket.fileno())
            self._await_end(time.monotonic() + REAP_SECONDS)
            return
        try:
            for frame in self._reader.feed(data):
                self._on_frame(frame)
        except WireError as exc:
            log.warning("worker %d speaks nonsense and is killed: %s", self.pid, exc)
            self._last_errors.append(f"what it wrote to its SuperNode makes no sense: {exc}")
            self.kill()

    def _on_frame(self, frame: Frame) -> None:
        if self.state is State.ENDING and frame.op != LOG:
            return
        if frame.op == READY and self.state is State.STARTING:
            self.state = State.BLANK
            self._listener.worker_ready(self)
        elif frame.op == LOG:
            self._log(str(frame.header.get("level", "INFO")), split_text(str(frame.header.get("text", ""))))
        elif frame.op == DONE and self.state is State.BUSY:
            self._on_done(to_done(frame.header), frame.body)
        else:
            raise WireError(f"an unexpected frame {frame.op!r}")

    def _on_done(self, done: Done, manifest: bytes) -> None:
        if done.number != self._served:
            raise WireError(f"an answer to task {done.number} instead of {self._served}")
        for descriptor in list(self._streams):
            self._drain(descriptor)
        task = self.leave_task()
        self.state = State.IDLE
        self.idle_since = time.monotonic()
        if task is not None:
            self._listener.worker_done(self, task, done, manifest)

    def _on_output(self, descriptor: int, _events: int) -> None:
        self._read_output(descriptor)

    def _read_output(self, descriptor: int) -> int:
        splitter, level = self._streams[descriptor]
        try:
            data = os.read(descriptor, OUTPUT_BYTES)
        except BlockingIOError:
            return 0
        except OSError:
            data = b""
        if data:
            self._log(level, splitter.feed(data))
        else:
            self._reactor.unwatch(descriptor)
            self._log(level, splitter.flush())
        return len(data)

    def _drain(self, descriptor: int) -> None:
        total = 0
        while total < DRAIN_BYTES and (count := self._read_output(descriptor)):
            total += count
        splitter, level = self._streams[descriptor]
        self._log(level, splitter.flush())

    def _log(self, level: str, lines: list[str]) -> None:
        if not lines:
            return
        if level != "INFO":
            self._last_errors.extend(lines)
        if self._speaker is None:
            return  # before the first task, so no app's output
        # Between two tasks it comes from threads that the last one has left.
        run_id, source = self._speaker
        now = datetime.now(UTC)
        level = clean(level)[:32]
        self._under_way += len(lines)
        wrote = [LogLine(at=now, source=source, level=level, text=text) for text in lines]
        self._listener.worker_wrote(self, run_id, wrote)
        if not self._paused and self._under_way > LINES_UNDER_WAY:
            self._paused = True
            self._watch()

    def _await_end(self, until: float) -> None:
        """Its socket is closed: the process has ended, or is about to."""
        if self._gone:
            return
        if self._has_exited():
            self._over()
            return
        if time.monotonic() > until:
            self._killgroup(signal.SIGKILL)
        self._reactor.after(0.002, lambda: self._await_end(until))

    def _has_exited(self) -> bool:
        if sys.platform == "darwin":
            return self._process.poll() is not None
        # WNOWAIT leaves the process unreaped, and its group its own, until the rest of the group is killed.
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _over(self) -> None:
        self.state = State.ENDING
        self._killgroup(signal.SIGKILL)  # what it may have left of its process group
        for descriptor in list(self._streams):
            self._drain(descriptor)
        self._gone = True
        if self._kill is not None:
            self._kill.cancel()
        for descriptor in (self._socket.fileno(), *self._streams):
            self._reactor.unwatch(descriptor)
        self._socket.close()
        for file in (self._process.stdout, self._process.stderr):
            if file is not None:
                file.close()
        code = self._process.wait()
        self.was_killed = code == -signal.SIGKILL
        reason = _ending(code)
        if self._last_errors:
            reason = "\n".join([f"{reason}; the last that it wrote:", *self._last_errors])
        self._listener.worker_gone(self, self.leave_task(), reason)


def _ending(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"exited with code {code}"
    if code == -signal.SIGKILL:
        return "was killed by SIGKILL, as the kernel does when memory runs out"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


def worker_environment(threads: int) -> dict[str, str]:
    """The environment of workers: no way to the database, and a share of the cores for numerical libraries.

    Apps are the code of others: what `FLQ_DSN` or `PGPASSWORD` hold is none of their business.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FLQ_", "PGPASS"))}
    if (armed := failpoints()) is not None:
        kept[FAILPOINTS] = armed
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        kept.setdefault(name, str(threads))  # one that the operator has set is meant
    kept.setdefault("PYTHONHASHSEED", "0")  # the order of a set of texts must not differ between attempts at a task
    source = Path(flq.__file__).parent.parent
    if str(source) not in {*site.getsitepackages(), site.getusersitepackages()}:
        # flq runs from a source tree, which `-P` would hide from the worker.
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, [str(source), kept.get("PYTHONPATH", "")]))
    return kept
