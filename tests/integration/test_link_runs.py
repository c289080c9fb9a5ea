"""Runs and attempts: submission, dispatch, take-over, stop, end, on a real Postgres."""

from __future__ import annotations

import pytest

from flq.errors import AttemptFenced, BrokerUnreachable, IllegalTransition, RunUnknown, SchemaError, UsageError
from flq.link import attempts, nodes, runs
from flq.link.control import DbControl
from flq.link.database import Database, Tx
from flq.link.dispatch import Dispatcher
from flq.wire.fleet import NodeSpec
from flq.wire.grid import Checkpoint
from flq.wire.ids import RunId
from flq.wire.runs import Cause, Job
from flq.wire.status import RUN_TRANSITIONS, AttemptStatus, Outcome, RunStatus
from tests.integration import link_acts as act
from tests.integration.link_acts import Doors


@pytest.fixture
def control(dsn: str):
    found = DbControl(dsn)
    yield found
    found.close()


def status(db: Database, run_id: int) -> RunStatus:
    (row,) = runs.listing(db, run_id=runs.resolve(db, str(run_id)))
    return row.status


def test_a_submitted_run_is_pending_with_a_name_and_a_history(control: DbControl):
    row = control.submit(act.submission())
    assert row.status == RunStatus.PENDING
    assert control.run(row.name) == control.run(str(row.run_id)) == row
    assert [(event.event, event.actor) for event in control.events(row.name)] == [("submitted", "ada")]
    assert row.config == {"rounds": 3}


def test_a_repeated_submission_returns_the_run_that_exists(control: DbControl):
    submission = act.submission()
    first = control.submit(submission)
    assert control.submit(submission).run_id == first.run_id
    assert len(control.runs()) == 1
    assert (
        control.submit(act.submission(owner="bob", idempotency_key=submission.idempotency_key)).run_id != first.run_id
    )


def test_names_are_chosen_by_the_user_once_and_must_be_names(control: DbControl):
    control.submit(act.submission("my-run"))
    with pytest.raises(UsageError, match="taken"):
        control.submit(act.submission("my-run"))
    with pytest.raises(UsageError, match="cannot be a run's name"):
        control.submit(act.submission("My Run"))


def test_an_unknown_run_names_the_nearest_one(control: DbControl):
    control.submit(act.submission("brave-otter"))
    with pytest.raises(RunUnknown) as caught:
        control.run("brave-oter")
    assert caught.value.hint == "did you mean brave-otter?"
    with pytest.raises(RunUnknown):
        control.run("9" * 30)


def test_runs_are_dispatched_by_priority_as_slots_are_free(db: Database):
    low, high, late = (runs.submit(db, act.submission(priority=priority)) for priority in (0, 5, 0))
    assert attempts.allocate(db) == []  # no SuperExec lives
    act.superexec(db, slots=2)
    assert [job.run_id for job in attempts.allocate(db)] == [high, low]
    assert attempts.allocate(db) == []
    assert status(db, low) == RunStatus.STARTING
    assert status(db, late) == RunStatus.PENDING


def test_an_attempt_is_claimed_once_and_an_outdated_job_is_ignored(db: Database):
    spec = act.superexec(db)
    run_id = runs.submit(db, act.submission())
    (job,) = attempts.allocate(db)

    def claim(attempt: int) -> attempts.AttemptClaim | None:
        return attempts.claim(db, run_id=run_id, attempt=attempt, process_id=spec.process_id, job_id=job.job_id)

    assert claim(2) is None
    first = claim(1)
    assert first is not None
    assert first.run.config == {"rounds": 3}
    assert claim(1) is None


def test_a_job_that_nobody_takes_is_published_again_with_another_id(db: Database):
    act.superexec(db)
    runs.submit(db, act.submission())
    (job,) = attempts.allocate(db)
    assert attempts.unclaimed(db, patience=3600) == []
    (again,) = attempts.unclaimed(db, patience=0)
    assert (again.run_id, again.attempt) == (job.run_id, job.attempt)
    assert again.job_id != job.job_id


def test_a_broker_that_is_away_delays_a_run_and_does_not_lose_it(db: Database):
    act.superexec(db)
    runs.submit(db, act.submission())
    sent: list[Job] = []

    def refuse(_: Job) -> None:
        raise BrokerUnreachable("no broker")

    assert Dispatcher(db, refuse).step() == 0
    with db.connection() as connection:
        connection.execute("UPDATE flq_state.run_attempt SET published_at = published_at - interval '1 minute'")
    assert Dispatcher(db, sent.append).step() == 1
    assert sent[0].attempt == 1


def test_a_run_goes_from_starting_to_running_to_finished(doors: Doors, db: Database, control: DbControl):
    grid, claim = doors.grid()
    run_id = claim.run.run_id
    grid.begin()  # repeated over a lost connection: no harm
    assert status(db, run_id) == RunStatus.RUNNING
    assert attempts.renew(db, run_id=run_id, token=claim.token) == attempts.AttemptState(
        ours=True, stop_requested=False
    )
    assert attempts.finish(
        db, run_id=run_id, token=claim.token, outcome=Outcome.FAILED, reason="ValueError: x", exit_code=1, error="trace"
    )
    row = control.run(claim.run.name)
    assert (row.status, row.outcome, row.reason) == (RunStatus.FINISHED, Outcome.FAILED, "ValueError: x")
    (attempt,) = control.attempts(claim.run.name)
    assert (attempt.status, attempt.exit_code, attempt.error) == (AttemptStatus.ENDED, 1, "trace")
    assert [event.event for event in control.events(claim.run.name)] == [
        "submitted", "starting", "claimed", "running", "failed",
    ]  # fmt: skip
    assert not attempts.finish(
        db, run_id=run_id, token=claim.token, outcome=Outcome.COMPLETED, reason=None, exit_code=0
    )


def test_an_attempt_that_died_is_followed_by_another_which_fences_it(doors: Doors, db: Database):
    grid, claim = doors.grid()
    run_id = claim.run.run_id
    with db.connection() as connection:
        connection.execute("UPDATE flq_state.run_attempt SET lease_until = clock_timestamp() - interval '1 s'")
    assert attempts.release_abandoned(db) == 1
    assert status(db, run_id) == RunStatus.PENDING
    second, claimed_again = doors.grid(run_id)
    assert claimed_again.attempt == 2
    assert not attempts.renew(db, run_id=run_id, token=claim.token).ours
    for write in (
        lambda: grid.record_metrics(1, {"loss": 1.0}),
        lambda: grid.plan_rounds(3),
        lambda: grid.put_artifact("x", act.object_of(b"")),
        lambda: grid.cancel([]),
        grid.begin,
    ):
        with pytest.raises(AttemptFenced):
            write()
    second.record_metrics(1, {"loss": 0.5})


def test_an_attempt_that_dies_too_often_fails_its_run(
    db: Database, control: DbControl, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(attempts, "BACK_OFF_SECONDS", 0.0)  # each attempt follows at once
    claim = act.start_attempt(db)
    run_id = claim.run.run_id
    for _ in range(attempts.MAX_ATTEMPTS - 1):
        attempts.release(db, run_id=run_id, token=claim.token, reason="it was killed")
        claim = act.start_attempt(db, run_id)
    attempts.release(db, run_id=run_id, token=claim.token, reason="it was killed")
    row = control.run(str(run_id))
    assert row.outcome == Outcome.FAILED
    assert "it was killed" in (row.reason or "")


def test_stopping_a_run_that_nobody_holds_finishes_it_at_once(db: Database, control: DbControl):
    pending = control.submit(act.submission())
    assert control.stop(pending.name, actor="ada").outcome == Outcome.STOPPED
    act.superexec(db)
    starting = control.submit(act.submission())
    (job,) = attempts.allocate(db)
    assert control.stop(starting.name, actor="ada", reason="a typo").reason == "a typo"
    assert attempts.claim(
        db, run_id=job.run_id, attempt=1, process_id=act.superexec(db).process_id, job_id=job.job_id
    ) is None  # fmt: skip


def test_stopping_a_run_that_is_held_asks_its_superexec(doors: Doors, db: Database, control: DbControl):
    fleet, hosted = doors.fleet("a")
    grid, claim = doors.grid()
    grid.push(act.push(hosted[0].node_id))
    (lease,) = act.claim(fleet, hosted)
    run_id = claim.run.run_id
    assert control.stop(claim.run.name, actor="ada").stop_requested
    assert fleet.ended([run_id]) == {run_id}
    assert fleet.renew([lease.key]).lost == {lease.key.task_id}
    with pytest.raises(AttemptFenced):
        grid.push(act.push(hosted[0].node_id))
    assert attempts.renew(db, run_id=run_id, token=claim.token) == attempts.AttemptState(ours=True, stop_requested=True)
    # its process dies before it can say so: the run is stopped nevertheless
    attempts.release(db, run_id=run_id, token=claim.token, reason="it was killed")
    assert control.run(claim.run.name).outcome == Outcome.STOPPED
    assert control.stop(claim.run.name, actor="bob").outcome == Outcome.STOPPED


def test_a_round_is_committed_once_and_a_later_attempt_starts_from_it(doors: Doors, db: Database, control: DbControl):
    grid, claim = doors.grid()
    data = bytes(100_000)
    grid.put(act.object_of(data), memoryview(data))
    commit = Checkpoint(
        round=1, state=b"state", objects=frozenset([act.object_of(data)]), metrics={"loss": 0.5}, next_sequence=2
    )
    grid.commit_round(commit)
    grid.commit_round(Checkpoint(round=1, state=b"again", objects=frozenset(), metrics={"loss": 9.0}, next_sequence=4))
    assert grid.last_checkpoint() == commit
    attempts.release(db, run_id=claim.run.run_id, token=claim.token, reason="killed")
    second, _ = doors.grid(claim.run.run_id)
    assert second.last_checkpoint() == commit
    (row,) = control.rounds(claim.run.name)
    assert (row.round, row.status, row.metrics) == (1, "committed", {"loss": 0.5})


def test_the_views_tell_a_run_s_rounds_and_tasks(doors: Doors, control: DbControl):
    fleet, hosted = doors.fleet("a", "b")
    grid, claim = doors.grid()
    grid.plan_rounds(2)
    for number in (1, 2):
        grid.push(act.push(*(node.node_id for node in hosted), round=number, group=str(number)))
        fleet.submit([act.reply(lease) for lease in act.claim(fleet, hosted)])
        grid.commit_round(
            Checkpoint(round=number, state=b"", objects=frozenset(), metrics={"loss": 1 / number}, next_sequence=number)
        )
    table = control.query("select round, nodes, duration, metrics from flq.rounds order by round")
    assert table.columns == ("round", "nodes", "duration", "metrics")
    assert [(row[0], row[1], row[3]) for row in table.rows] == [(1, 2, {"loss": 1.0}), (2, 2, {"loss": 0.5})]
    assert [row.round for row in control.rounds(claim.run.name)] == [1, 2]
    assert control.rounds(claim.run.name, since=2) == control.rounds(claim.run.name)[1:]
    assert all(row[2].total_seconds() > 0 for row in table.rows)
    tasks = control.query(
        "select node, round, status, attempt from tasks where run = $1 order by round, node", [claim.run.name]
    )
    assert tasks.rows == (("a", 1, "ok", 1), ("b", 1, "ok", 1), ("a", 2, "ok", 1), ("b", 2, "ok", 1))
    row = control.run(claim.run.name)
    assert (row.rounds_planned, row.rounds_done, row.results_ok, row.tasks_open) == (2, 2, 4, 0)


def test_waiting_says_why_a_run_does_not_go_on(doors: Doors, db: Database, control: DbControl):
    run = control.submit(act.submission())
    assert control.waiting(run.name)[0] == Cause("no_superexec", "no SuperExec is alive")
    fleet, hosted = doors.fleet("far-away")
    grid, claim = doors.grid(run.run_id)
    grid.push(act.push(hosted[0].node_id))
    assert "1 of 1 open tasks wait for a free slot" in control.waiting(claim.run.name)[0].reason
    fleet.disconnect()
    assert "offline: far-away" in control.waiting(claim.run.name)[0].reason
    attempts.finish(db, run_id=run.run_id, token=claim.token, outcome=Outcome.COMPLETED, reason=None, exit_code=0)
    assert control.waiting(run.name) == []


def test_a_run_sees_the_online_nodes_that_its_selector_names(doors: Doors, db: Database):
    spec = act.process()
    nodes.connect(
        db, spec,
        [NodeSpec(name="a", labels={"site": "x"}), NodeSpec(name="b", labels={"site": "y"}), NodeSpec(name="c")],
    )  # fmt: skip
    fleet, _ = doors.fleet("gone")
    fleet.disconnect()
    everyone, _ = doors.grid()
    assert [node.name for node in everyone.nodes()] == ["a", "b", "c"]
    some, _ = doors.grid(runs.submit(db, act.submission(select=("c", "site=y"))))
    assert [node.name for node in some.nodes()] == ["b", "c"]


def bring_to(db: Database, run_id: RunId, to: RunStatus) -> int:
    """Take a new run to a status; returns the token of its attempt."""
    if to == RunStatus.PENDING:
        return 0
    token = act.start_attempt(db, run_id).token
    if to == RunStatus.RUNNING:
        with db.transaction() as tx:
            assert runs.begin(tx, run_id, token)
    if to == RunStatus.FINISHED:
        attempts.finish(db, run_id=run_id, token=token, outcome=Outcome.FAILED, reason="test", exit_code=1)
    return token


def move(tx: Tx, run_id: RunId, before: RunStatus, to: RunStatus, token: int) -> bool:
    """Try the one function that takes a run from one status to another."""
    if to == RunStatus.PENDING and before == RunStatus.FINISHED:
        runs.resume(tx, run_id, actor="test")
    elif to == RunStatus.PENDING:
        runs.requeue(tx, run_id, actor="test", reason="test")
    elif to == RunStatus.FINISHED:
        runs.finish(tx, run_id, Outcome.FAILED, actor="test", reason="test")
    elif to == RunStatus.RUNNING:
        return runs.begin(tx, run_id, token)
    else:
        return tx.execute(attempts.SQL["start_attempt"], {"run_id": run_id, "token": 1}).rowcount == 1
    return True


@pytest.mark.parametrize("before", list(RunStatus))
@pytest.mark.parametrize("after", list(RunStatus))
def test_status_moves_along_the_drawn_graph_only(db: Database, before: RunStatus, after: RunStatus):
    run_id = runs.submit(db, act.submission())
    token = bring_to(db, run_id, before)
    try:
        with db.transaction() as tx:
            moved = move(tx, run_id, before, after, token)
    except IllegalTransition:
        moved = False
    assert moved == ((before, after) in RUN_TRANSITIONS)
    assert status(db, run_id) == (after if moved else before)


def test_a_database_at_another_revision_is_refused(dsn: str, db: Database):
    with db.connection() as connection:
        connection.execute("UPDATE flq_state.alembic_version SET version_num = '0000'")
    with pytest.raises(SchemaError) as caught:
        DbControl(dsn)
    assert "flq db upgrade" in (caught.value.hint or "")
