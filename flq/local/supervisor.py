"""The supervisor: `python -m flq.local.supervisor --home HOME --nodes N`.

One thread sleeps until something happens: a child ends (SIGCHLD), a child announces that it is ready, somebody
asks for more nodes, a delay or a deadline passes. Each time it looks at every child and does what is due. So there
is one place that decides, and an idle federation costs a look at its home every ten seconds.

A child that ends is started again after a delay that doubles with each failure. Only while the federation comes up
for the first time does a child that keeps failing end it all, with an error that says which and why.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from flq import log, settings
from flq.errors import FlqError, LocalError, ServerFailed
from flq.local import former, layout, plan, state
from flq.local.layout import Layout
from flq.local.process import Child, ChildSpec
from flq.local.state import FederationState, Snapshot

Plan = Callable[[Layout, int], Sequence[ChildSpec]]

ALREADY_RUNNING = 3
"""The exit code of a supervisor that finds another one at work."""

PATIENCE_AT_START = 3
"""So many failures of a child end a federation that has not been up yet; a step has one try."""

_PROBE_PAUSE = 0.02
_WRITE_PAUSE = 1.0
_HOME_PAUSE = 10.0

_log = log.get(__name__)


class Supervisor:
    """Carries out a plan until it is told to stop."""

    def __init__(self, where: Layout, nodes: int, *, plan_for: Plan, lock: int, signals: _Signals) -> None:
        self._where = where
        self._lock = lock
        self._plan_for = plan_for
        self._nodes = nodes
        self._children: dict[str, Child] = {}
        self._state: FederationState = "starting"
        self._failure: FlqError | None = None
        self._written: Snapshot | None = None
        self._signals = signals
        self._control: socket.socket | None = None

    def run(self) -> int:
        """Start everything, keep it running, stop everything; the exit code."""
        self._take_over()
        try:
            layout.make_folders(self._where)
            self._where = replace(self._where, port=settings.embedded(self._where.home).port)
            self._control = _control_socket(self._where.control)
            self._children = {spec.name: Child(spec) for spec in self._plan_for(self._where, self._nodes)}
        except FlqError as exc:
            self._give_up(exc)
        while self._turn():
            self._sleep()
        if self._state == "stopping":
            self._state = "down"
            self._publish()
        if not self._homeless:
            layout.clean_up(self._where)
        _log.info("down")
        return 1 if self._failure else 0

    def _take_over(self) -> None:
        """Wait for what a killed supervisor left behind; only then is its state file replaced."""
        left = state.read(self._where.state)
        former.end(left.remains if left else ())
        _log.info("starting with %d nodes", self._nodes)
        self._publish()

    def _turn(self) -> bool:
        """Look at every child and do what is due; False when all is over."""
        if not self._over and (self._signals.stop or self._homeless):
            _log.info("stopping, since %s", "the home is gone" if self._homeless else "told so")
            self._state = "stopping"
        for child in self._children.values():
            self._observe(child)
        if self._over:
            self._stop_next()
        else:
            self._start_due()
        self._publish()
        return not (self._over and all(child.phase == "ended" for child in self._children.values()))

    @property
    def _homeless(self) -> bool:
        """Whether the home was removed; another federation may have been started in its place."""
        return not state.still_there(self._where.lock, self._lock)

    @property
    def _over(self) -> bool:
        """Whether everything is to end."""
        return self._state in {"stopping", "failed"}

    def _observe(self, child: Child) -> None:
        code = child.exit_code()
        if code is not None:
            self._ended(child, code)
        elif child.phase == "starting" and child.is_ready():
            child.work()
            _log.info("%s (pid %s) is ready", child.name, child.pid)
            self._note_progress()
        elif child.deadline is not None and time.monotonic() >= child.deadline:
            _log.warning("%s (pid %s) takes too long and is killed", child.name, child.pid)
            child.kill()

    def _ended(self, child: Child, code: int) -> None:
        if child.spec.undo and (self._over or code != 0):
            child.spec.undo()
        if self._over:
            child.end()
        elif child.spec.once and code == 0:
            if child.spec.finish:
                child.spec.finish()
            child.end()
            self._note_progress()
        else:
            replaced = child.replacing
            child.retry()
            if not replaced:
                _log.warning("%s ended with %d (failure %d)", child.name, code, child.failures)
                self._judge(child, ServerFailed(f"{child.name} ended with {_exit(code)}{_quoted(child.last_words())}"))

    def _judge(self, child: Child, failure: FlqError) -> None:
        """A federation that comes up gives up on a child that keeps failing; one that was up goes on trying."""
        tries = 1 if child.spec.once else PATIENCE_AT_START
        if self._state == "starting" and child.failures >= tries:
            failure.hint = failure.hint or f"its log is {child.spec.log}"
            self._give_up(failure)

    def _give_up(self, failure: FlqError) -> None:
        _log.error("giving up: %s", failure.message)
        self._failure = failure
        self._state = "failed"

    def _note_progress(self) -> None:
        """The federation is up when all its children are for the first time."""
        if self._state == "starting" and all(child.settled for child in self._children.values()):
            self._state = "up"
            _log.info("up")

    def _start_due(self) -> None:
        for child in self._startable():
            if child.due <= time.monotonic():
                try:
                    child.start()
                except (FlqError, OSError) as exc:
                    _log.exception("%s cannot be started", child.name)
                    child.retry()
                    self._judge(child, exc if isinstance(exc, FlqError) else LocalError(f"{child.name}: {exc}"))
                self._publish()  # at once: should this process be killed, the next one must know the child

    def _startable(self) -> Iterator[Child]:
        for child in self._children.values():
            if child.phase == "waiting" and all(self._children[name].settled for name in child.spec.needs):
                yield child

    def _stop_next(self) -> None:
        """Ask those to end whom nobody needs any more."""
        alive = [child for child in self._children.values() if child.phase != "ended"]
        needed = {name for child in alive for name in child.spec.needs if child.pid is not None}
        for child in alive:
            if child.name not in needed:
                child.stop()

    def _sleep(self) -> None:
        """Wait for something to happen."""
        pipes = [child.ready_pipe for child in self._children.values() if child.ready_pipe is not None]
        sources: list[int | socket.socket] = [self._signals.reader, *pipes]
        if self._control is not None:
            sources.append(self._control)
        ready, _, _ = select.select(sources, [], [], self._until_next_deadline())
        self._signals.drain()
        if self._control in ready:
            self._take_request()

    def _until_next_deadline(self) -> float:
        now = time.monotonic()
        times = [now + _HOME_PAUSE]
        times += [child.deadline for child in self._children.values() if child.deadline is not None]
        if not self._over:
            times += [child.due for child in self._startable()]
        if any(child.phase == "starting" and child.spec.ready for child in self._children.values()):
            times.append(now + _PROBE_PAUSE)
        if self._written is None:
            times.append(now + _WRITE_PAUSE)
        return max(0.0, min(times) - now)

    def _take_request(self) -> None:
        """Start those children anew whose command is another one with the nodes that are asked for."""
        if self._control is None or self._over:
            return
        nodes = _requested_nodes(self._control.recv(1024))
        if nodes <= self._nodes:
            return
        try:
            specs = self._plan_for(self._where, nodes)
        except (FlqError, OSError):
            _log.exception("%d nodes cannot be planned for", nodes)
            return
        _log.info("growing from %d to %d nodes", self._nodes, nodes)
        self._nodes = nodes
        for spec in specs:
            child = self._children.get(spec.name)
            if child is not None and spec.argv != child.spec.argv and not spec.once:
                child.replace(spec)
        self._publish()

    def _publish(self) -> None:
        """Write the state file if there is something new to tell."""
        children = self._children.values()
        snapshot = Snapshot(
            pid=os.getpid(),
            state=self._state,
            nodes=self._nodes,
            addresses=self._where.addresses if self._state == "up" else None,
            processes=tuple(child.status() for child in children if not (child.spec.once and child.phase == "ended")),
            remains=tuple(remain for child in children if (remain := child.remain())),
            error=self._failure.message if self._failure else None,
            hint=self._failure.hint if self._failure else None,
        )
        if snapshot == self._written or self._homeless:
            return
        try:
            state.write(self._where.state, snapshot)
        except OSError as exc:  # a full disk must not end the federation
            _log.warning("%s cannot be written: %s", self._where.state, exc)
            self._written = None
        else:
            self._written = snapshot


class _Signals:
    """SIGCHLD and the signals that stop, as something that `select` can wait for."""

    def __init__(self) -> None:
        self.stop = False
        self.reader, writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        # handlers that do nothing, rather than SIG_IGN, which the children would inherit
        for number in (signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)

    def drain(self) -> None:
        """Take note that something was signalled; what it was is looked up."""
        with suppress(BlockingIOError):
            os.read(self.reader, 4096)

    def _on_stop(self, *_: object) -> None:
        self.stop = True


def _control_socket(path: Path) -> socket.socket:
    """Where requests arrive: a datagram is taken as a whole or not at all, and needs no connection."""
    path.unlink(missing_ok=True)
    control = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    control.settimeout(0)
    control.bind(str(path))
    path.chmod(0o600)
    return control


def _requested_nodes(datagram: bytes) -> int:
    try:
        return int(json.loads(datagram)["nodes"])
    except (ValueError, KeyError, TypeError):
        _log.warning("a request that cannot be read: %r", datagram)
        return 0


def _exit(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


def _quoted(words: str) -> str:
    if not words:
        return ""
    return f":\n{words}" if "\n" in words else f": {words}"


def supervise(home: Path, *, nodes: int, plan_for: Plan) -> int:
    """Hold the lock of `home` and run its federation; `ALREADY_RUNNING` if another supervisor does."""
    where = layout.locate(home)
    signals = _Signals()  # before the lock: by that others find this process, and may stop it
    lock = state.acquire(where.lock)
    if lock is None:
        return ALREADY_RUNNING
    os.chdir("/")
    try:
        return Supervisor(where, nodes, plan_for=plan_for, lock=lock, signals=signals).run()
    except Exception:  # noqa: BLE001 - the edge of a process
        # the children end by their parent-death signal; the next supervisor waits for them
        _log.exception("the supervisor failed")
        return 1


def main(arguments: Sequence[str] | None = None, *, plan_for: Plan | None = None) -> int:
    """Run the supervisor of the embedded federation, or of what another plan says."""
    parser = argparse.ArgumentParser(prog="python -m flq.local.supervisor")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--install-deps", action="store_true")
    chosen = parser.parse_args(arguments)
    log.to_stderr()
    federation = partial(plan.federation, install_deps=chosen.install_deps)
    return supervise(chosen.home, nodes=chosen.nodes, plan_for=plan_for or federation)


if __name__ == "__main__":
    sys.exit(main())
