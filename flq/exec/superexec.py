"""SuperExec: a Celery worker with a prefork pool whose children launch ServerApps.

The main process serves Celery and says that it lives (`desk`); every child runs one attempt at a time (`launcher`).
A shutdown, warm or cold, cuts the lifeline: the children end their ServerApps within seconds and give their attempts
back, which the next SuperExec continues from their last checkpoint. Celery alone would wait for them for hours.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import uuid
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from celery import Celery, signals
from celery.bootsteps import RUN
from celery.exceptions import SecurityWarning, WorkerLostError
from celery.worker import state
from celery.worker.autoscale import Autoscaler
from celery.worker.consumer import Consumer

import flq
from flq import log, settings
from flq.exec import jobs
from flq.exec.celery_app import QUEUE, create_app, housekeeping_queue
from flq.exec.desk import Desk, Lost, Stop
from flq.exec.launcher import Launcher
from flq.exec.lifeline import Lifeline
from flq.exec.probe import INTERVAL_SECONDS, Probe
from flq.exec.publisher import housekeeper
from flq.exec.seat import Seat
from flq.wire.ids import RunId
from flq.wire.runs import ProcessSpec
from flq.wire.status import ProcessKind

logger = log.get(__name__)

HEARTBEAT_SECONDS = 5
"""How often Celery Flower hears of the worker."""

RECONNECT_SECONDS = 1.0
"""How often a broker that is away is looked for."""

SHUTDOWN_SECONDS = 10.0
"""How long Celery may take to shut down. ServerApps have ended long before; without its broker it might never."""


def run(
    dsn: str,
    broker: str,
    *,
    slots: int,
    name: str,
    home: Path,
    install_deps: bool = False,
    probe_interval: float = INTERVAL_SECONDS,
) -> int:
    """Serve until a signal ends it; returns the exit code.

    `name` tells this SuperExec from others on the same host. `install_deps` allows ServerApps to install what their
    apps depend on. Every `probe_interval` seconds it looks whether it still takes jobs; the exit code is 1 if it had to
    end because it took none. Raises `DatabaseUnreachable`, or `LocalError` if one of this name is at work below `home`.
    """
    log.to_stderr()
    _share_log_with_celery()
    warnings.simplefilter("ignore", SecurityWarning)  # of root: jobs are JSON, and run no code that they carry
    app = create_app(broker)
    spec = _spec(slots)
    seat = Seat(home, name)
    desk = Desk(dsn, spec)
    desk.register(former=seat.former)
    seat.sit(spec.process_id)
    lifeline = Lifeline()
    launcher = Launcher(
        dsn=dsn,
        process_id=spec.process_id,
        home=home,
        lifeline=lifeline,
        threads=os.cpu_count() or 1,
        install_deps=install_deps,
    )
    jobs.register(app, launcher.launch)
    worker = _worker(app, slots=slots, name=name)
    hooks = Hooks(launcher, desk, lifeline, seat)
    probe = hooks.probe = Probe(
        housekeeper(broker, worker.hostname),
        is_busy=lambda: lifeline.is_cut() or len(state.reserved_requests) >= slots,
        tell=desk.note_consumption,
        consume_anew=partial(_consume_anew, worker),
        give_up=hooks.give_up,
        interval=probe_interval,
    )
    jobs.register_housekeeping(app, partial(_take_housekeeping, probe))
    with hooks:
        try:
            worker.start()
        finally:
            probe.close()
            lifeline.cut()
            desk.close()
    return 1 if hooks.gave_up else int(worker.exitcode or 0)


class Hooks:
    """What happens at Celery's signals. A context: connected while it lasts."""

    def __init__(self, launcher: Launcher, desk: Desk, lifeline: Lifeline, seat: Seat) -> None:
        self._launcher = launcher
        self._desk = desk
        self._lifeline = lifeline
        self._seat = seat
        self._main = os.getpid()
        self._leaving = False
        self.probe: Probe | None = None
        """Begins when the worker is ready."""
        self.gave_up = False
        """Whether the SuperExec ends because it takes no jobs."""
        self._receivers: tuple[tuple[Any, Callable[..., None]], ...] = (
            (signals.setup_logging, self._leave_logging),
            (signals.worker_process_init, self._child_started),
            (signals.worker_ready, self._ready),
            (signals.task_revoked, self._revoked),
            (signals.task_failure, self._failed),
        )

    def __enter__(self) -> None:
        for when, receiver in self._receivers:
            when.connect(receiver, weak=False)

    def __exit__(self, *_: object) -> None:
        for when, receiver in self._receivers:
            when.disconnect(receiver)

    def _leave_logging(self, **_: object) -> None:
        """Connected so that Celery leaves the loggers as they are."""

    def _child_started(self, **_: object) -> None:
        self._seat.leave()
        self._launcher.settle()

    def _ready(self, **_: object) -> None:
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            self._cut_lifeline_at(signum)
        self._desk.open()
        if self.probe is not None:
            self.probe.open()
        settings.announce_ready()

    def _revoked(self, request: Any, *, terminated: bool, **_: object) -> None:
        reason = "its job was terminated through Celery" if terminated else "its job was revoked through Celery"
        job = request.kwargs
        self._desk.stop_run(Stop(RunId(job["run_id"]), job["attempt"], reason))

    def _failed(self, exception: BaseException, kwargs: Mapping[str, Any], **_: object) -> None:
        if isinstance(exception, WorkerLostError) and os.getpid() == self._main:
            self._desk.release_attempt(Lost(RunId(kwargs["run_id"]), kwargs["attempt"]))

    def _cut_lifeline_at(self, signum: signal.Signals) -> None:
        celerys = signal.getsignal(signum)

        def handle(number: int, frame: FrameType | None) -> None:
            self._lifeline.cut()
            self._limit_shutdown()
            if callable(celerys):
                celerys(number, frame)

        signal.signal(signum, handle)

    def give_up(self) -> None:
        """Have the SuperExec end, whatever its main thread is doing. May be called from any thread."""
        self.gave_up = True
        self._lifeline.cut()
        self._limit_shutdown()
        os.kill(self._main, signal.SIGTERM)

    def _limit_shutdown(self) -> None:
        if not self._leaving:
            self._leaving = True
            timer = threading.Timer(SHUTDOWN_SECONDS, _leave)
            timer.daemon = True
            timer.start()


def _leave() -> None:
    """End this process as it is; its children end with it."""
    logger.warning("Celery has not shut down within %g s; leaving", SHUTDOWN_SECONDS)
    os._exit(1)


class Growing(Autoscaler):  # type: ignore[misc]
    """Starts a pool child when a job needs one, and keeps it: most federations never run several ServerApps at once.

    Celery's own one ends idle children by SIGTERM, and cannot tell whether a job is just on its way to one of them.
    """

    def scale_down(self, n: int) -> None:
        """Keep what there is."""


class Reconnecting(Consumer):  # type: ignore[misc]
    """Looks for a broker that is away once a second, and connects anew when it is told to.

    Celery's own one waits longer and longer, up to half a minute.
    """

    def ensure_connected(self, conn: Any) -> Any:
        """Return `conn` once it is connected."""
        conn.ensure_connection = partial(conn.ensure_connection, interval_start=RECONNECT_SECONDS, interval_step=0)
        return super().ensure_connected(conn)

    def consumes_all(self) -> bool:
        """Whether the queue of launches and that of housekeeping are read."""
        return all(self.task_consumer.consuming_from(queue) for queue in self._queues())

    def consume_anew(self) -> None:
        """Drop the connection to the broker, and read all queues through another one. May be called from any thread.

        Running jobs do not notice.
        """
        self.hub.call_soon(self._lose_connection)

    def _lose_connection(self) -> None:
        if self.blueprint.state != RUN:  # it is about to end
            return
        self.app.amqp.queues.select(self._queues())  # one that was cancelled is left out otherwise
        raise ConnectionResetError("dropped on purpose: no housekeeping jobs came through it")

    def _queues(self) -> list[str]:
        return [QUEUE, housekeeping_queue(self.hostname)]


def _worker(app: Celery, *, slots: int, name: str) -> Any:
    hostname = f"{name}@{socket.gethostname()}"
    return app.Worker(
        hostname=hostname,
        queues=[QUEUE, housekeeping_queue(hostname)],
        pool="prefork",
        concurrency=slots,
        autoscale=(slots, 1),
        autoscaler_cls=Growing,
        consumer_cls=Reconnecting,
        heartbeat_interval=HEARTBEAT_SECONDS,
        without_gossip=True,  # several SuperExecs know of each other through PostgreSQL
        without_mingle=True,
        quiet=True,
    )


def _take_housekeeping(probe: Probe, consumer: Reconnecting) -> None:
    if consumer.consumes_all():  # else launches are not taken, and it is as if this one were not
        probe.taken()


def _consume_anew(worker: Any) -> None:
    worker.consumer.consume_anew()


def _spec(slots: int) -> ProcessSpec:
    return ProcessSpec(
        process_id=uuid.uuid4().hex,
        kind=ProcessKind.SUPEREXEC,
        host=socket.gethostname(),
        pid=os.getpid(),
        version=flq.__version__,
        slots=slots,
    )


def _share_log_with_celery() -> None:
    for celerys in (logging.getLogger("celery"), logging.getLogger("kombu")):
        celerys.handlers[:] = logging.getLogger("flq").handlers
        celerys.propagate = False
        celerys.setLevel(logging.WARNING)
