"""The SuperNode: claims tasks for the nodes that it hosts, has workers do them, hands in what comes of it.

One thread owns all state and runs the loop (`reactor`). It never waits for the SuperLink: the threads that do bring
their answers to it. A task passes through it like this:

    Claimer -> _take -> Preparer -> _ready -> Scheduler -> _start -> worker -> worker_done -> Submitter -> _settled
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum, auto
from functools import partial
from pathlib import Path

import flq
from flq.failpoints import reach
from flq.log import get
from flq.node.bases import Bases
from flq.node.cache import ObjectCache
from flq.node.claimer import Claimer
from flq.node.claims import ClaimPlan, ClaimRequest, Pace
from flq.node.confirmer import Confirmer
from flq.node.door import Door
from flq.node.heartbeat import Heartbeat, Waiter
from flq.node.keeper import Keeper
from flq.node.options import SuperNodeOptions, node_specs, shown_size
from flq.node.outage import Outage
from flq.node.pool import Pool
from flq.node.preparer import Preparer
from flq.node.protocol import Assignment, Done, capped, to_reply
from flq.node.reactor import Reactor
from flq.node.room import Room
from flq.node.scheduler import Scheduler
from flq.node.shipper import Shipper
from flq.node.state import ClientStates, Version
from flq.node.submitter import Submitter
from flq.node.tasks import HeldTask, Stage
from flq.node.trimmer import Trimmer
from flq.node.worker_process import WorkerProcess
from flq.settings import announce_ready
from flq.wire.fleet import Claimed, Fleet, HostedNode, Lease, NodeSpec, Renewed, Reply, StateBase, TaskKey, Wake
from flq.wire.ids import NodeId, ObjectHash, RunId
from flq.wire.lines import split_text
from flq.wire.message import ErrorCode
from flq.wire.runs import LogLine, ProcessSpec
from flq.wire.status import ProcessKind, ResultStatus, Verdict

log = get(__name__)

FLUSH_SECONDS = 5.0
"""How long a drained SuperNode tries to hand in its last results and lines."""

GOODBYE_SECONDS = 2.0
"""How long it tries to say goodbye, and waits for killed workers to be gone."""

PURGE_SECONDS = 3600.0

KILLED_ATTEMPTS = 3
"""A task whose process is killed from outside, as the kernel does when memory runs out, is tried so often."""


class Phase(Enum):
    """Where the process stands."""

    CONNECTING = auto()
    WORKING = auto()
    DRAINING = auto()
    LEAVING = auto()


class SuperNode:
    """Hosts nodes. `run` blocks until a signal, `stop` or another process that takes all the nodes over ends it.

    Of signals SIGTERM and SIGINT it drains: running tasks may finish, the others are given back. A second one ends
    it at once. Signals are handled only if `run` is called in the main thread.
    """

    def __init__(self, fleet: Fleet, options: SuperNodeOptions) -> None:
        self._fleet = fleet
        self._options = options
        self._specs = node_specs(options)
        self._reactor = Reactor()
        self._outage = Outage(lambda: self._reactor.post(self._recovered))
        self._phase = Phase.CONNECTING
        self._exit_code: int | None = None
        self._hosted: dict[NodeId, tuple[HostedNode, NodeSpec]] = {}
        self._ended: set[RunId] = set()
        self._flush_until: float | None = None
        self._pace = Pace(options.slots)
        self._scheduler = Scheduler()
        self._make_parts()

    def _make_parts(self) -> None:
        fleet, reactor, outage, cache = self._fleet, self._reactor, self._outage, self._options.cache
        self._scratch = cache / "scratch"
        self._objects = ObjectCache(cache / "objects", self._options.cache_bytes)
        self._states = ClientStates(cache / "state")
        self._pool = Pool(
            reactor,
            self,
            slots=self._options.slots,
            threads=max(1, (os.cpu_count() or 1) // self._options.slots),
            idle_seconds=self._options.idle_seconds,
            gpus=self._options.gpus,
        )
        self._preparer = Preparer(
            fleet,
            reactor,
            outage,
            cache=self._objects,
            bundles=cache / "bundles",
            ready=self._ready,
            failed=self._end_with_error,
        )
        self._submitter = Submitter(
            fleet, reactor, outage, cache=self._objects, states=self._states, settled=self._settled,
            more_follows=self._scheduler.more_follows,
        )  # fmt: skip
        self._bases = Bases(fleet, reactor, outage, scheduler=self._scheduler, failed=self._end_with_error)
        self._room = Room(reactor, self._scheduler)
        self._trimmer = Trimmer(fleet, reactor, outage, states=self._states, hosted=self._node_ids)
        self._keeper = Keeper(
            fleet, reactor, outage, keys=self._held_keys, lost=self._lost, answered=self._runs_answered
        )
        self._confirmer = Confirmer(fleet, reactor, outage, working=self._pool.runs)
        self._plan = ClaimPlan()
        self._claimer = Claimer(fleet, reactor, outage, self._plan, make=self._claim_request, brought=self._brought)
        self._shipper = Shipper(fleet, outage, lambda counts: reactor.post(partial(self._shipped, counts)))
        self._heartbeat = Heartbeat(
            fleet,
            outage,
            superseded=lambda: reactor.post(lambda: self._superseded(frozenset(self._hosted))),
            forgotten=lambda: reactor.post(self._forgotten),
        )
        self._waiter = Waiter(fleet, outage, lambda wake: reactor.post(partial(self._woken, wake)))
        self._door = Door(fleet, reactor, outage, _process(self._options.slots))

    # ------------------------------------------------------------------ life

    def run(self) -> int:
        """Work until the end; returns the exit code: 0, or 1 if another process has taken all the nodes over."""
        with self._reactor.signals(self._on_signal, signal.SIGTERM, signal.SIGINT):
            try:
                self._door.connect(self._specs, self._connected)
                self._reactor.run(each=self._turn, until=lambda: self._exit_code is not None)
            finally:
                self._leave()
        return self._exit_code or 0

    def stop(self) -> None:
        """Do what SIGTERM does; may be called from any thread. A second call ends the process at once."""
        self._reactor.post(lambda: self._on_signal(signal.SIGTERM))

    def _connected(self, hosted: list[HostedNode]) -> None:
        self._host(hosted, self._specs)
        self._heartbeat.start()
        self._shipper.start()
        self._door.settle(self._states, self._begin)

    def _host(self, hosted: Sequence[HostedNode], specs: Sequence[NodeSpec]) -> None:
        self._hosted = {node.node_id: (node, spec) for node, spec in zip(hosted, specs, strict=True)}

    def _begin(self) -> None:
        if self._phase is not Phase.CONNECTING:
            return
        self._phase = Phase.WORKING
        # What workers of earlier processes have left: no such process can hand anything in any more.
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._plan.host(self._hosted)
        self._waiter.start()
        self._purge()
        self._trimmer.start()
        names = [node.name for node, _spec in self._hosted.values()]
        shown = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        log.info("connected as %s, %d slots", shown, self._options.slots)
        announce_ready()

    def _turn(self) -> None:
        """What follows from whatever has just happened; called after every batch of events."""
        if self._phase is Phase.WORKING:
            self._dispatch()
            self._claimer.step()
        if self._phase in {Phase.CONNECTING, Phase.WORKING}:
            self._pool.provide(min(self._pool.free_slots, self._scheduler.startable()))
        elif self._phase is Phase.DRAINING:
            self._look_whether_drained()

    # ----------------------------------------------------------------- tasks

    def _claim_request(self, plan: ClaimPlan) -> ClaimRequest | None:
        scheduler = self._scheduler
        return plan.request(capacity=self._pace.capacity, backlog=scheduler.backlog, held_by=scheduler.held_by)

    def _brought(self, claimed: Claimed) -> None:
        if claimed.superseded:
            self._superseded(claimed.superseded)
        if self._phase is not Phase.WORKING:
            self._keeper.release([lease.key for lease in claimed.leases])
            return
        for lease in claimed.leases:
            self._take(lease)
        self._bases.foresee(lease.key.task_id for lease in claimed.leases)
        if claimed.leases:
            reach("supernode.claimed")
            self._keeper.holds_something()

    def _take(self, lease: Lease) -> None:
        held = self._scheduler.get(lease.key.task_id)
        if held is not None:
            # Its lease had run out, in an outage for example. The work goes on, under the new token.
            held.lease = lease
            return
        hosted = self._hosted.get(lease.key.node_id)
        if hosted is None:
            return
        task = HeldTask(lease, hosted[0].name)
        self._scheduler.add(task)
        if task.run_id in self._ended:
            self._keeper.ask({task.run_id})  # it may have been resumed: the answer prepares or drops the task
        else:
            self._preparer.prepare(task)

    def _ready(self, task: HeldTask) -> None:
        self._scheduler.ready(task, time.monotonic())

    def _dispatch(self) -> None:
        fresh = self._options.isolation == "task"
        while self._pool.free_slots > 0:
            task = self._scheduler.next(
                warm=() if fresh else self._pool.warm(), blank=self._pool.has_blank(), now=time.monotonic()
            )
            if task is None:
                return
            self._start(task)

    def _start(self, task: HeldTask) -> None:
        left = task.lease.deadline - time.time()
        if left <= 0:
            text = "the deadline passed before this node had a free slot"
            self._end_with_error(task, ErrorCode.MESSAGE_UNAVAILABLE, text)
            return
        base = self._bases.base(task)
        if base is None:
            return
        worker = self._pool.take(task.run_id)
        assert worker is not None  # noqa: S101 - the scheduler was told which runs have one
        task.staging = self._states.staging(task)
        task.scratch = f"{self._scratch}/{task.task_id}-{task.key.token}"
        task.alarm = self._reactor.after(left, lambda: self._too_late(task))
        self._confirmer.worked(task.run_id, task.node_id)
        worker.assign(task, self._assignment(task, worker, base), task.lease.manifest)

    def _state_path(self, task: HeldTask, base: StateBase) -> str | None:
        """Where the version lies that a task starts from; None for an empty state."""
        version = base.version
        if version is None:
            return None
        return str(self._states.path(Version(version.run_id, task.node_name, version.task_id)))

    def _assignment(self, task: HeldTask, worker: WorkerProcess, base: StateBase) -> Assignment:
        files = self._preparer.files(task.run_id)
        options = self._options
        lease = task.lease
        return Assignment(
            number=worker.served + 1,
            run_id=task.run_id,
            seed=files.info.seed,
            bundle=str(files.folder),
            run_config=files.info.config,
            node_id=task.node_id,
            node_name=task.node_name,
            node_config=self._hosted[task.node_id][1].config,
            task_id=task.task_id,
            kind=lease.kind,
            group=lease.group,
            created_at=lease.created_at,
            deadline=lease.deadline,
            attempt=lease.attempt,
            objects=str(self._objects.folder),
            scratch=task.scratch,
            state=self._state_path(task, base),
            stage=task.staging,
            environments=None if options.environments is None else str(options.environments),
            gpus=worker.gpus,
            memory_bytes=options.memory_bytes,
        )

    def _too_late(self, task: HeldTask) -> None:
        if task.stage is Stage.RUNNING:
            self._stop_working_on(task, at_once=True)
            text = "the deadline passed while the ClientApp was working"
            self._end_with_error(task, ErrorCode.MESSAGE_UNAVAILABLE, text)

    def _end_with_error(self, task: HeldTask, code: int, text: str) -> None:
        now = datetime.now(UTC)
        self._reply(
            task,
            Reply(
                key=task.key,
                status=ResultStatus.ERROR,
                error_code=int(code),
                error_text=capped(text),
                started_at=now,
                ended_at=now,
            ),
        )

    def _reply(self, task: HeldTask, reply: Reply, files: Mapping[ObjectHash, Path] | None = None) -> None:
        if task.alarm is not None:
            task.alarm.cancel()
        if reply.status is ResultStatus.ERROR:
            self._tell_run(task, f"error {reply.error_code} in {task.lease.kind}: {reply.error_text}")
        self._scheduler.computed(task, time.monotonic(), keeps_node=task.staged is not None)
        self._submitter.offer(task, reply, files)

    def _tell_run(self, task: HeldTask, text: str, *, level: str = "ERROR") -> None:
        """Report an error in the run's log, in the name of the task's node: what it is, and its traceback as details.

        Progress leaves the details out: they would stand there once for each node that has the error.
        """
        now = datetime.now(UTC)
        lines = [
            LogLine(at=now, source=task.node_name, level="DEBUG" if number else level, text=line)
            for number, line in enumerate(split_text(text))
        ]
        self._shipper.put(0, task.run_id, lines)

    def _settled(self, task: HeldTask, verdict: Verdict) -> None:
        if verdict is Verdict.FENCED:
            log.info("task %d of run %d was no longer ours when its result came", task.task_id, task.run_id)
        elif task.staged is not None:
            self._bases.accepted(task)
            self._trimmer.promoted()
        self._forget(task)

    def _forget(self, task: HeldTask) -> None:
        if task.alarm is not None:
            task.alarm.cancel()
        self._preparer.forget(task)
        self._bases.forget(task)
        self._room.forget(task)
        self._scheduler.remove(task, time.monotonic())
        task.remove_scratch()

    def _drop(self, task: HeldTask) -> None:
        """The task is none of ours any more; a reply that is on its way will be refused, which ends it."""
        if task.stage is Stage.REPLYING:
            return
        self._stop_working_on(task, at_once=False)
        self._forget(task)

    def _stop_working_on(self, task: HeldTask, *, at_once: bool) -> None:
        for worker in self._pool:
            if worker.task is task:
                worker.leave_task()
                if at_once:
                    worker.kill()
                else:
                    worker.end()

    # --------------------------------------------------------------- workers

    def worker_ready(self, worker: WorkerProcess) -> None:
        """A blank worker is there: `_turn` gives it something to do."""

    def worker_wrote(self, worker: WorkerProcess, run_id: RunId, lines: Sequence[LogLine]) -> None:
        """Pass output on."""
        self._shipper.put(worker.number, run_id, lines)

    def worker_done(self, worker: WorkerProcess, task: HeldTask, done: Done, manifest: bytes) -> None:
        """Hand the reply in."""
        if self._options.isolation == "task":
            worker.end()
        self._pace.took(done.ended_at - done.started_at)
        if done.no_room:
            if self._room.wait_for(task):
                self._tell_run(task, f"{task.lease.kind} waits for room: {done.error_text}", level="WARNING")
            return
        if not done.written:
            task.scratch = ""  # it was not made
        if done.staged:
            task.staged = Path(task.staging)
        reply = to_reply(task.key, done, manifest)
        self._reply(task, reply, {ObjectHash(bytes.fromhex(text)): Path(task.scratch, text) for text in done.written})

    def worker_gone(self, worker: WorkerProcess, task: HeldTask | None, reason: str) -> None:
        """Answer for the task that the worker has left undone."""
        self._pool.gone(worker, reason)
        self._confirmer.look()
        if task is None or self._phase is Phase.LEAVING:
            return
        text = f"the process of the ClientApp {reason}{self._limits()}"
        if worker.was_killed and task.lease.attempt < KILLED_ATTEMPTS:
            self._tell_run(task, f"{task.lease.kind} is done again: {text}", level="WARNING")
            self._give_back([task])
        else:
            self._end_with_error(task, ErrorCode.CLIENT_APP_CRASHED, text)

    def _limits(self) -> str:
        """What a crash may have come of, for people: native code often dies of a refused allocation."""
        limit = self._options.memory_bytes
        return "" if limit is None else f"\nthis node limits a ClientApp to {shown_size(limit)} of memory"

    def _shipped(self, counts: Counter[int]) -> None:
        for number, lines in counts.items():
            worker = self._pool.by_number(number)
            if worker is not None:
                worker.shipped(lines)

    # ------------------------------------------------- what the SuperLink says

    def _woken(self, wake: Wake) -> None:
        polled = not (wake.tasks or wake.runs)
        if wake.tasks or polled:
            self._claimer.wake()
        if wake.runs or polled:
            self._keeper.ask({*self._scheduler.runs, *self._preparer.runs, *self._confirmer.runs})

    def _recovered(self) -> None:
        """The SuperLink is reachable again."""
        self._claimer.recovered()
        self._submitter.try_again()

    def _held_keys(self) -> list[TaskKey]:
        return [task.key for task in self._scheduler]

    def _lost(self, asked: Sequence[TaskKey], renewed: Renewed) -> None:
        if renewed.superseded:
            self._superseded(renewed.superseded)
        for key in asked:
            if key.task_id in renewed.lost:
                task = self._scheduler.get(key.task_id)
                if task is not None and task.key.token == key.token:
                    self._drop(task)

    def _forgotten(self) -> None:
        """The SuperLink does not know this process, as after a restore of its database: introduce it again."""
        if self._door.connecting or not self._hosted or self._exit_code is not None:
            return
        log.warning("the SuperLink does not know this process any more: connecting again")
        specs = [spec for _node, spec in self._hosted.values()]
        self._door.connect(specs, lambda hosted: self._known_again(hosted, specs))

    def _known_again(self, hosted: Sequence[HostedNode], specs: Sequence[NodeSpec]) -> None:
        self._host(hosted, specs)
        self._bases.forget_all()
        for task in self._scheduler:
            if task.node_id not in self._hosted:  # its SuperLink is another one
                self._drop(task)
        if self._phase is Phase.WORKING:
            self._plan.host(self._hosted)
            self._claimer.wake()

    def _superseded(self, nodes: Collection[NodeId]) -> None:
        gone = [self._hosted.pop(node_id)[0] for node_id in nodes if node_id in self._hosted]
        if not gone:
            return
        log.error("another process hosts %s now: this one stops working for it", ", ".join(node.name for node in gone))
        self._plan.drop(node.node_id for node in gone)
        ids = {node.node_id for node in gone}
        for task in self._scheduler:
            if task.node_id in ids:
                self._drop(task)
        if not self._hosted and self._exit_code is None:
            self._exit_code = 1

    def _runs_answered(self, asked: Collection[RunId], ended: Collection[RunId]) -> None:
        for run_id in ended:
            self._end_run(run_id)
        for run_id in set(asked) - set(ended):
            if run_id in self._ended:  # it was resumed
                self._ended.discard(run_id)
                for task in self._scheduler.of_run(run_id):
                    self._preparer.prepare(task)

    def _end_run(self, run_id: RunId) -> None:
        """Stop everything that is done for the run, at once."""
        if run_id in self._preparer.runs:
            log.info("run %d has ended", run_id)
        self._ended.add(run_id)
        for task in self._scheduler.of_run(run_id):
            self._drop(task)
        self._pool.end_run(run_id)
        self._confirmer.ended(run_id)
        self._preparer.forget_run(run_id)
        self._bases.forget_run(run_id)
        self._states.purge(run_id, self._node_ids())

    def _node_ids(self) -> dict[str, NodeId]:
        return {node.name: node_id for node_id, (node, _spec) in self._hosted.items()}

    def _purge(self) -> None:
        """Look through the client state that there is: it goes some time after its runs have ended."""
        self._states.survey(self._node_ids())
        self._keeper.ask(set(self._states.runs()))
        self._reactor.after(PURGE_SECONDS, self._purge)

    # ------------------------------------------------------------------- end

    def _on_signal(self, number: int) -> None:
        if self._phase is Phase.WORKING:
            self._drain()
        elif self._phase is Phase.CONNECTING:
            self._exit_code = 0
        elif self._exit_code is None:
            log.warning("ending at once")
            self._exit_code = 128 + number

    def _drain(self) -> None:
        self._phase = Phase.DRAINING
        self._claimer.stop()
        self._waiter.stop()
        unstarted = [task for task in self._scheduler if task.stage in {Stage.PREPARING, Stage.READY}]
        running = self._running()
        log.info("ending: %d tasks may finish, %d are given back", len(running), len(unstarted))
        self._give_back(unstarted)
        self._reactor.after(self._options.drain_seconds, self._end_of_patience)

    def _running(self) -> list[HeldTask]:
        return [task for task in self._scheduler if task.stage is Stage.RUNNING]

    def _end_of_patience(self) -> None:
        running = self._running()
        if running:
            log.warning("%d tasks have not finished in time and are given back", len(running))
        self._give_back(running)

    def _give_back(self, tasks: Sequence[HeldTask]) -> None:
        for task in tasks:
            self._stop_working_on(task, at_once=True)
            self._forget(task)
        self._keeper.release([task.key for task in tasks])

    def _look_whether_drained(self) -> None:
        if self._running():
            return
        now = time.monotonic()
        if self._flush_until is None:
            self._flush_until = now + FLUSH_SECONDS
            self._reactor.after(FLUSH_SECONDS, _nothing)
        if now >= self._flush_until:
            log.warning("the SuperLink could not take the last results in time")
            self._exit_code = 0
        elif self._submitter.idle and not self._claimer.busy and not self._keeper.busy:
            self._exit_code = 0

    def _leave(self) -> None:
        """End everything, whatever state it is in. Takes at most some seconds."""
        connected = bool(self._hosted) or self._phase is not Phase.CONNECTING
        forced = self._phase is Phase.DRAINING and self._exit_code != 0
        self._phase = Phase.LEAVING
        self._door.stop()
        self._waiter.stop()
        self._pool.kill()
        self._turn_until(lambda: not len(self._pool))
        self._shipper.close(0.0 if forced else FLUSH_SECONDS)
        self._heartbeat.stop()
        if connected:
            self._say_goodbye()
        parts = (self._claimer, self._keeper, self._submitter, self._preparer, self._bases, self._trimmer, self._door)
        for part in (*parts, self._confirmer):
            part.close()
        self._reactor.close()

    def _say_goodbye(self) -> None:
        over = threading.Event()
        self._door.say_goodbye(over.set)
        self._turn_until(over.is_set)

    def _turn_until(self, over: Callable[[], bool]) -> None:
        until = time.monotonic() + GOODBYE_SECONDS
        self._reactor.after(GOODBYE_SECONDS, _nothing)
        self._reactor.run(each=_nothing, until=lambda: over() or time.monotonic() >= until)


def _process(slots: int) -> ProcessSpec:
    return ProcessSpec(
        process_id=uuid.uuid4().hex,
        kind=ProcessKind.SUPERNODE,
        host=platform.node(),
        pid=os.getpid(),
        version=flq.__version__,
        slots=slots,
    )


def _nothing() -> None:
    """Makes the loop turn."""
