"""The pool of ClientApp workers: at most `slots` of them compute at once, and one is kept ready for the next run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from flq.log import get
from flq.node.devices import Shares
from flq.node.outage import Backoff
from flq.node.reactor import Reactor, Timer
from flq.node.worker_process import Listener, State, WorkerProcess
from flq.wire.ids import RunId

log = get(__name__)

SPARE_SECONDS = 0.5
"""After the spare worker was put to use the next one is started a little later: the first task comes first."""

CHECK_SECONDS = 1.0
"""How often busy workers are looked at, should one have died without closing its socket."""


class Pool:
    """Starts, keeps and ends worker processes.

    A worker begins blank: everything that is flq's and numpy is imported, nothing of an app. It becomes the worker of
    the first run that needs it, with a share of the GPUs, and stays that until it ends. One whose GPUs are in use
    waits, though a slot be free.
    """

    def __init__(
        self,
        reactor: Reactor,
        listener: Listener,
        *,
        slots: int,
        threads: int,
        idle_seconds: float,
        gpus: Sequence[str] | None,
    ) -> None:
        self._reactor = reactor
        self._listener = listener
        self._slots = slots
        self._most = 2 * slots + 1
        self._threads = threads
        self._idle_seconds = idle_seconds
        self._shares = Shares(gpus, slots)
        self._workers: dict[int, WorkerProcess] = {}
        self._number = 0
        self._not_before = 0.0
        self._backoff = Backoff()
        self._spare_at = 0.0
        self._round: Timer | None = None
        self._closing = False

    def __len__(self) -> int:
        return len(self._workers)

    def __iter__(self) -> Iterator[WorkerProcess]:
        return iter(list(self._workers.values()))

    @property
    def free_slots(self) -> int:
        """How many more workers may compute."""
        return self._slots - sum(1 for worker in self._workers.values() if worker.task is not None)

    def warm(self) -> set[RunId]:
        """The runs that have an idle worker whose GPUs are free."""
        in_use = self._gpus_in_use()
        return {
            worker.run_id
            for worker in self._workers.values()
            if worker.state is State.IDLE and worker.run_id is not None and self._shares.has_room(worker.gpus, in_use)
        }

    def runs(self) -> set[RunId]:
        """The runs that have a worker."""
        return {worker.run_id for worker in self._workers.values() if worker.run_id is not None}

    def has_blank(self) -> bool:
        """Whether a worker is ready that belongs to no run yet."""
        return any(worker.state is State.BLANK for worker in self._workers.values())

    def take(self, run_id: RunId) -> WorkerProcess | None:
        """A worker for a task of the run: one of its own, the one used last, else a blank one."""
        in_use = self._gpus_in_use()
        idle = [worker for worker in self._workers.values() if worker.state is State.IDLE and worker.run_id == run_id]
        own = [worker for worker in idle if self._shares.has_room(worker.gpus, in_use)]
        if own:
            return max(own, key=lambda worker: worker.idle_since)
        self._spare_at = time.monotonic() + SPARE_SECONDS
        blank = next((worker for worker in self._workers.values() if worker.state is State.BLANK), None)
        if blank is not None:
            held = [worker.gpus for worker in self._workers.values() if worker.run_id is not None]
            blank.gpus = self._shares.choose(in_use, held)
        return blank

    def by_number(self, number: int) -> WorkerProcess | None:
        """The worker, if it is still there."""
        return self._workers.get(number)

    def provide(self, wanted: int) -> None:
        """See to it that `wanted` blank workers, and one spare, are ready soon."""
        if self._closing:
            return
        now = time.monotonic()
        coming = sum(1 for worker in self._workers.values() if worker.state in {State.STARTING, State.BLANK})
        spare = 1 if now >= self._spare_at else 0
        for _ in range(wanted + spare - coming):
            if now < self._not_before or not self._make_room():
                break
            self._start()
            coming += 1
        self._arm()

    def end_run(self, run_id: RunId) -> None:
        """End the run's workers."""
        for worker in self._workers.values():
            if worker.run_id == run_id:
                worker.end()

    def gone(self, worker: WorkerProcess, reason: str) -> None:
        """Note that a process is over."""
        self._workers.pop(worker.number, None)
        if worker.served:
            self._backoff.reset()
        elif not self._closing:
            # Blank workers do not end by themselves: something is wrong with this installation.
            log.error("worker %d was not fit to work, it %s", worker.pid, reason)
            self._not_before = time.monotonic() + self._backoff.next()

    def close(self) -> None:
        """End all workers, and start no more."""
        self._closing = True
        if self._round is not None:
            self._round.cancel()
        for worker in self._workers.values():
            worker.end()

    def kill(self) -> None:
        """End all workers at once, whatever they do."""
        self._closing = True
        for worker in self._workers.values():
            worker.kill()

    def _gpus_in_use(self) -> list[str | None]:
        return [worker.gpus for worker in self._workers.values() if worker.task is not None]

    def _start(self) -> None:
        self._number += 1
        try:
            worker = WorkerProcess(self._number, self._reactor, self._listener, self._threads)
        except OSError as exc:
            log.error("no worker process can be started: %s", exc)  # noqa: TRY400 - the cause is told
            self._not_before = time.monotonic() + self._backoff.next()
            return
        self._workers[worker.number] = worker

    def _make_room(self) -> bool:
        """Whether one more process may be started; if need be the worker that was idle for longest is ended."""
        living = [worker for worker in self._workers.values() if worker.state is not State.ENDING]
        if len(living) < self._most:
            return True
        idle = [worker for worker in living if worker.state is State.IDLE]
        if not idle:
            return False
        min(idle, key=lambda worker: worker.idle_since).end()
        return True

    def _arm(self) -> None:
        """Come back when something is due, and only then: an idle pool does not wake its process."""
        now = time.monotonic()
        due = [at for at in (self._spare_at, self._not_before) if at > now]
        for worker in self._workers.values():
            if worker.state is State.IDLE:
                due.append(worker.idle_since + self._idle_seconds)
            elif worker.state in {State.BUSY, State.STARTING}:
                due.append(now + CHECK_SECONDS)
        if not due or self._closing:
            return
        first = min(due)
        if self._round is not None and self._round.action is not None:
            if self._round.due <= first:
                return
            self._round.cancel()
        self._round = self._reactor.after(max(0.01, first - now), self._look_round)

    def _look_round(self) -> None:
        now = time.monotonic()
        for worker in list(self._workers.values()):
            if worker.state is State.IDLE and now - worker.idle_since >= self._idle_seconds:
                worker.end()
            elif worker.state in {State.BUSY, State.STARTING}:
                worker.check()
        # The loop calls `provide` after this, which comes back here when the next thing is due.
