"""The life of tasks, in any order of steps, on a real Postgres against a model in memory.

`HYPOTHESIS_PROFILE=long` makes it thousands of steps more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from flq.errors import AttemptFenced
from flq.link import attempts, batches, nodes, results, runs, tasks, verify
from flq.link.attempts import AttemptClaim
from flq.link.cursors import Cursors
from flq.link.database import Database
from flq.wire.fleet import Lease, NodeSpec
from flq.wire.grid import Push, Pushed
from flq.wire.ids import BatchId, NodeId, RunId, TaskId
from flq.wire.runs import FeedCursor, ProcessSpec
from flq.wire.status import Outcome, ResultStatus
from tests.concurrency.task_model import Model, Open
from tests.integration import link_acts as act

MOST_ATTEMPTS = 3
NAMES = ("a", "b", "c")
EXAMPLES: Final = {"short": (25, 30), "ci": (120, 30), "long": (2000, 60)}

some = st.data()


@dataclass(slots=True)
class Process:
    """A SuperNode: what it believes to host, and what it has been told of."""

    spec: ProcessSpec
    epochs: dict[NodeId, int]
    cursors: Cursors = field(default_factory=Cursors)
    known: tasks.Batches = field(default_factory=tasks.Batches)
    token: int = 0
    told: set[TaskId] = field(default_factory=set)


class TaskMachine(RuleBasedStateMachine):
    """Every step is done to the database and to the model, and answers alike."""

    db: Database
    dsn: str

    @initialize()
    def begin(self) -> None:
        with self.db.connection() as connection:
            connection.execute(
                "TRUNCATE flq_state.run, flq_state.node, flq_state.process, flq_state.batch, flq_state.task,"
                " flq_state.task_message, flq_state.task_attempt, flq_state.result, flq_state.run_attempt,"
                " flq_state.run_event, flq_state.object_ref RESTART IDENTITY CASCADE"
            )
        self.model = Model(MOST_ATTEMPTS)
        self.leases: list[Lease] = []
        self.pushes: list[tuple[int, Push, Pushed]] = []
        self.cursor = FeedCursor()
        self.pulled: list[TaskId] = []
        self.processes: list[Process] = []
        self.attempts: list[AttemptClaim] = []
        self.fenced: list[AttemptClaim] = []
        self._host(NAMES)
        for weight in (1.0, 3.0):
            self._attempt(runs.submit(self.db, act.submission(weight=weight)))

    # ------------------------------------------------------------------ ServerApps

    @rule(data=some, told=st.booleans())
    def push(self, data: st.DataObject, told: bool) -> None:  # noqa: FBT001 - drawn
        claim = data.draw(st.sampled_from(self.attempts))
        to = data.draw(st.lists(st.sampled_from(sorted(self.model.epochs)), min_size=1, max_size=3, unique=True))
        push = act.push(*to, sequence=len(self.pushes))
        pushed = batches.push(self.db, run_id=claim.run.run_id, token=claim.token, push=push)
        self.pushes.append((claim.run.run_id, push, pushed))
        for node_id, task_id in zip(to, pushed.task_ids, strict=True):
            self.model.open[task_id] = Open(node_id, claim.run.run_id, pushed.batch_id)
        if told:
            self._tell(claim.run.run_id, set(pushed.task_ids))

    @precondition(lambda self: self.pushes)
    @rule(data=some)
    def push_again(self, data: st.DataObject) -> None:
        run_id, push, pushed = data.draw(st.sampled_from(self.pushes))
        (claim,) = (claim for claim in self.attempts if claim.run.run_id == run_id)
        again = batches.push(self.db, run_id=claim.run.run_id, token=claim.token, push=push)
        assert (again.batch_id, again.task_ids, again.replayed) == (pushed.batch_id, pushed.task_ids, True)

    @rule(data=some)
    def take_over_run(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(self.attempts))
        if claim.attempt >= attempts.MAX_ATTEMPTS:
            return
        assert attempts.release(self.db, run_id=claim.run.run_id, token=claim.token, reason="a test")
        self.attempts.remove(claim)
        self.fenced.append(claim)
        self._attempt(claim.run.run_id)

    @precondition(lambda self: self.fenced)
    @rule(data=some)
    def push_of_a_replaced_attempt(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(self.fenced))
        with pytest.raises(AttemptFenced):
            batches.push(
                self.db, run_id=claim.run.run_id, token=claim.token, push=act.push(*self.model.epochs, sequence=10_000)
            )

    @precondition(lambda self: self.pushes)
    @rule(data=some)
    def cancel(self, data: st.DataObject) -> None:
        run_id, _, pushed = data.draw(st.sampled_from(self.pushes))
        with self.db.transaction() as tx:
            ended = tasks.cancel_batches(tx, RunId(run_id), [pushed.batch_id], reason="a test")
        assert ended == self.model.ended(self.model.tasks_of({pushed.batch_id}), ResultStatus.CANCELLED)

    @rule()
    def pull(self) -> None:
        page = results.arrived(self.db, [BatchId(p.batch_id) for *_, p in self.pushes], self.cursor)
        self.cursor = page.cursor
        for key in page.keys:
            assert self.model.results[key.task_id][0] == key.status
            self.pulled.append(key.task_id)
        assert sorted(self.pulled) == sorted(self.model.results)

    # ------------------------------------------------------------------ SuperNodes

    @rule(data=some, per_node=st.integers(1, 4), total=st.integers(1, 8), poll=st.booleans())
    def claim(self, data: st.DataObject, per_node: int, total: int, poll: bool) -> None:  # noqa: FBT001 - drawn
        process = data.draw(st.sampled_from(self.processes))
        asked = self._some_nodes(data, process)
        full = poll or not process.token  # the first claim of a process is full in any case
        if poll:
            process.cursors.look_everywhere()
        process.token = act.token()
        leases = self._claim(process, asked, per_node, total)
        ours = self._ours(process, asked)
        self.model.check_claim(leases, ours, per_node, total)
        if full:
            self.model.check_full_claim(leases, ours, per_node, total)
        self._check_told(process, leases, ours, per_node, total)
        self._got(leases)

    @rule(data=some)
    def claim_again(self, data: st.DataObject) -> None:
        process = data.draw(st.sampled_from(self.processes))
        if not process.token:
            return
        asked = set(process.epochs)
        ours = self._ours(process, asked)
        before = self.model.held_by(process.token, ours)
        leases = self._claim(process, asked, 3, 6)
        if before:
            assert {lease.key.task_id for lease in leases} == before
        else:
            self.model.check_claim(leases, ours, 3, 6)
            self.model.check_full_claim(leases, ours, 3, 6)
        self._got(leases)

    @precondition(lambda self: self.leases)
    @rule(data=some)
    def renew(self, data: st.DataObject) -> None:
        process = data.draw(st.sampled_from(self.processes))
        keys = [lease.key for lease in self._some_leases(data)]
        renewed = tasks.renew(self.db, keys, process.epochs)
        lost = {key.task_id for key in keys if not self.model.held(key)}
        kept = {key.task_id for key in keys if self.model.held(key)}
        assert renewed.lost == lost - kept
        for task_id in kept:
            self.model.open[task_id].leased = True

    @precondition(lambda self: self.leases)
    @rule(data=some, told=st.booleans())
    def release(self, data: st.DataObject, told: bool) -> None:  # noqa: FBT001 - drawn
        leases = self._some_leases(data)
        tasks.release(self.db, [lease.key for lease in leases])
        given = self.model.released(lease.key for lease in leases)
        if told:
            for run_id in {self.model.open[task].run_id for task in given}:
                self._tell(run_id, {task for task in given if self.model.open[task].run_id == run_id})

    @precondition(lambda self: self.leases)
    @rule(data=some)
    def submit(self, data: st.DataObject) -> None:
        by_task = {lease.key.task_id: lease for lease in self._some_leases(data)}
        verdicts = results.submit(self.db, [act.reply(lease) for lease in by_task.values()])
        assert verdicts == self.model.submitted(lease.key for lease in by_task.values())

    @rule(data=some)
    def restart(self, data: st.DataObject) -> None:
        if len(self.processes) < 5:
            self._host(data.draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True)))

    @rule()
    def connect_again(self) -> None:
        process = self.processes[-1]  # an older one would take its nodes back
        hosted = nodes.connect(self.db, process.spec, [NodeSpec(name=NAMES[n - 2]) for n in sorted(process.epochs)])
        assert {node.node_id: node.epoch for node in hosted} == process.epochs

    # ------------------------------------------------------------------ time

    @precondition(lambda self: self.leases)
    @rule(data=some)
    def leases_run_out(self, data: st.DataObject) -> None:
        gone = {lease.key.task_id for lease in self._some_leases(data)}
        with self.db.connection() as connection:
            connection.execute(
                "UPDATE flq_state.task SET lease_until = clock_timestamp() - interval '1 s'"
                " WHERE task_id = ANY (%s) AND token <> 0",
                [list(gone)],
            )
        for task_id in gone & self.model.open.keys():
            self.model.open[task_id].leased = False

    @precondition(lambda self: self.pushes)
    @rule(data=some)
    def a_deadline_passes(self, data: st.DataObject) -> None:
        _, _, pushed = data.draw(st.sampled_from(self.pushes))
        with self.db.connection() as connection:
            connection.execute(
                "UPDATE flq_state.batch SET deadline = clock_timestamp() WHERE batch_id = %s", [pushed.batch_id]
            )
        self.model.overdue.add(pushed.batch_id)

    @rule()
    def sweep(self) -> None:
        with self.db.transaction() as tx:
            expired, exhausted = tasks.expire_overdue(tx), tasks.ExhaustedSweep()(tx)
        assert expired == self.model.ended(self.model.tasks_of(self.model.overdue), ResultStatus.EXPIRED)
        tried = {
            task_id for task_id, t in self.model.open.items() if t.attempt >= MOST_ATTEMPTS and not t.leased
        }  # fmt: skip
        assert exhausted == self.model.ended(tried, ResultStatus.ERROR)

    # ------------------------------------------------------------------ what always holds

    @invariant()
    def tables_are_as_the_model(self) -> None:
        if not hasattr(self, "model"):
            return
        with self.db.connection() as connection:
            rows = connection.execute(
                "SELECT task_id, node_id, run_id, batch_id, token, epoch, attempt, lease_until > clock_timestamp()"
                " FROM flq_state.task"
            ).fetchall()
            ended = connection.execute("SELECT task_id, status, token FROM flq_state.result").fetchall()
        assert {row[0]: Open(*row[1:]) for row in rows} == self.model.open
        assert {task: (ResultStatus(status), token) for task, status, token in ended} == self.model.results

    def teardown(self) -> None:
        if not hasattr(self, "model"):
            return
        self.pull()
        with self.db.connection() as connection:
            row = connection.execute(
                "SELECT coalesce(sum((details ->> 'count')::int), 0) FROM flq.events WHERE event = 'late results'"
            ).fetchone()
        assert row == (len(self.model.late),)
        for claim in self.attempts:
            attempts.finish(
                self.db, run_id=claim.run.run_id, token=claim.token, outcome=Outcome.COMPLETED, reason=None, exit_code=0
            )
        assert [f for f in verify.run(self.db) if not f.holds] == []

    # ------------------------------------------------------------------ inside

    def _host(self, names: tuple[str, ...] | list[str]) -> None:
        spec = act.process()
        hosted = nodes.connect(self.db, spec, [NodeSpec(name=name) for name in names])
        process = Process(spec, {node.node_id: node.epoch for node in hosted})
        process.cursors.host(process.epochs)
        self.processes.append(process)
        for node in hosted:
            assert node.epoch == self.model.epochs.get(node.node_id, 0) + 1
        self.model.epochs |= process.epochs

    def _attempt(self, run_id: Any) -> None:
        claim = act.start_attempt(self.db, run_id)
        with self.db.transaction() as tx:
            assert runs.begin(tx, claim.run.run_id, claim.token)
        self.attempts.append(claim)

    def _claim(self, process: Process, asked: set[NodeId], per_node: int, total: int) -> list[Lease]:
        claimed = tasks.claim(
            self.db,
            process_id=process.spec.process_id,
            epochs={node_id: process.epochs[node_id] for node_id in sorted(asked)},
            cursors=process.cursors,
            per_node=per_node,
            total=total,
            token=process.token,
            known=process.known,
        )
        assert claimed.superseded == asked - self._ours(process, asked)
        return list(claimed.leases)

    def _got(self, leases: list[Lease]) -> None:
        self.model.claimed(leases)
        self.leases += leases
        for process in self.processes:
            process.told -= {lease.key.task_id for lease in leases}

    def _tell(self, run_id: int, which: set[TaskId]) -> None:
        for process in self.processes:
            process.cursors.hear(f"{run_id} 0 {min(which)}")
            process.told |= which

    def _check_told(self, process: Process, leases: list[Lease], ours: set[NodeId], per_node: int, total: int) -> None:
        """What was told and fits is there, without a full look."""
        got = {lease.key.task_id for lease in leases}
        if len(got) == total:
            return
        for node_id in ours:
            if sum(lease.key.node_id == node_id for lease in leases) < per_node:
                assert process.told & self.model.claimable({node_id}) <= got

    def _ours(self, process: Process, asked: set[NodeId]) -> set[NodeId]:
        return {node_id for node_id in asked if process.epochs[node_id] == self.model.epochs[node_id]}

    def _some_nodes(self, data: st.DataObject, process: Process) -> set[NodeId]:
        return set(data.draw(st.lists(st.sampled_from(sorted(process.epochs)), min_size=1, unique=True)))

    def _some_leases(self, data: st.DataObject) -> list[Lease]:
        places = st.integers(0, len(self.leases) - 1)
        return [self.leases[-1 - n] for n in data.draw(st.lists(places, min_size=1, max_size=5, unique=True))]


@pytest.fixture
def machine(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[TaskMachine]]:
    monkeypatch.setattr(tasks, "MAX_ATTEMPTS", MOST_ATTEMPTS)
    monkeypatch.setattr(attempts, "BACK_OFF_SECONDS", 0.0)  # a run that is taken over goes on at once
    database = Database(dsn, application="flq machine")
    yield type("Machine", (TaskMachine,), {"db": database, "dsn": dsn})
    database.close()


@pytest.mark.timeout(3600)
def test_the_life_of_tasks_is_that_of_the_model(machine: type[TaskMachine]):
    profile = os.environ.get("HYPOTHESIS_PROFILE", "ci")
    examples, steps = EXAMPLES[profile]
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            derandomize=profile == "short",  # of two mutants the second gets the same examples
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
