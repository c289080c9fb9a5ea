"""Runs that go on and runs that come from another one: resume, fork, rerun; and the time that they may use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from flq.errors import CheckpointUnknown, IllegalTransition, RunUnknown, UsageError
from flq.link import attempts, collection, retention, runs, verify
from flq.link.control import DbControl
from flq.link.database import Database
from flq.link.grid import DbGrid
from flq.link.retention import Scope
from flq.wire.grid import Checkpoint
from flq.wire.ids import RunId
from flq.wire.runs import Derivation, RunRow
from flq.wire.status import AttemptStatus, Outcome, RunStatus
from tests.integration import link_acts as act
from tests.integration.link_acts import Doors

MODEL = bytes(range(256)) * 400


@pytest.fixture
def control(dsn: str) -> Iterator[DbControl]:
    found = DbControl(dsn)
    yield found
    found.close()


def commit(grid: DbGrid, number: int) -> Checkpoint:
    """Commit a round whose model is an object of its own."""
    data = MODEL + bytes([number])
    name = act.object_of(data)
    grid.put(name, memoryview(data))
    checkpoint = Checkpoint(
        round=number,
        state=f"state {number}".encode(),
        objects=frozenset([name]),
        metrics={"loss": 1 / (number + 1)},
        next_sequence=10 * number,
    )
    grid.commit_round(checkpoint)
    return checkpoint


def committed(doors: Doors, control: DbControl, rounds: int, **changes: Any) -> tuple[RunRow, list[Checkpoint]]:
    """A run that has committed so many rounds behind round 0, and goes on."""
    row = control.submit(act.submission(**changes))
    grid, _ = doors.grid(row.run_id)
    return control.run(row.name), [commit(grid, number) for number in range(rounds + 1)]


def token_of(db: Database, run_id: RunId) -> int:
    with db.transaction() as tx:
        return runs.lock(tx, run_id).token


def end(db: Database, run_id: RunId, outcome: Outcome) -> None:
    reason = None if outcome == Outcome.COMPLETED else "as the test wants it"
    attempts.finish(db, run_id=run_id, token=token_of(db, run_id), outcome=outcome, reason=reason, exit_code=0)


def derivation(**changes: Any) -> Derivation:
    return Derivation(**{"owner": "bob", "idempotency_key": "key", **changes})


def in_order(db: Database) -> bool:
    return all(found.holds for found in verify.run(db, payloads=True))


# resume


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.STOPPED])
def test_a_run_that_was_cut_goes_on_behind_its_last_commit(
    doors: Doors, db: Database, control: DbControl, outcome: Outcome
):
    row, checkpoints = committed(doors, control, 2)
    if outcome == Outcome.STOPPED:
        control.stop(row.name, actor="ada")
    end(db, row.run_id, outcome)
    resumed = control.resume(row.name, actor="bob")
    assert (resumed.status, resumed.outcome, resumed.reason, resumed.finished_at) == (
        RunStatus.PENDING, None, None, None,
    )  # fmt: skip
    assert not resumed.stop_requested
    event = control.events(row.name)[-1]
    assert (event.event, event.actor) == ("resumed", "bob")
    grid, claim = doors.grid(row.run_id)
    assert claim.attempt == 2
    assert grid.last_checkpoint() == checkpoints[-1]
    commit(grid, 3)
    end(db, row.run_id, Outcome.COMPLETED)
    assert control.run(row.name).rounds_done == 3
    assert in_order(db)


def test_a_resumed_run_has_all_of_its_attempts_before_it(db: Database, control: DbControl):
    claim = act.start_attempt(db)
    run_id = claim.run.run_id
    for _ in range(attempts.MAX_ATTEMPTS):
        claim = again(db, run_id, claim)
    assert control.run(str(run_id)).outcome == Outcome.FAILED
    control.resume(str(run_id), actor="ada")
    claim = act.start_attempt(db, run_id)
    for _ in range(attempts.MAX_ATTEMPTS - 1):
        claim = again(db, run_id, claim)
    assert control.run(str(run_id)).status == RunStatus.STARTING


def again(db: Database, run_id: RunId, claim: attempts.AttemptClaim) -> attempts.AttemptClaim:
    """Have an attempt die; the claim of the next one, which begins without waiting, or of the old one at the end."""
    attempts.release(db, run_id=run_id, token=claim.token, reason="it was killed")
    with db.connection() as connection:
        connection.execute("UPDATE flq_state.run SET not_before = NULL")
    (row,) = runs.listing(db, run_id=run_id)
    return claim if row.status == RunStatus.FINISHED else act.start_attempt(db, run_id)


def test_what_cannot_be_resumed_is_said_with_the_way_out(doors: Doors, db: Database, control: DbControl):
    row, _ = committed(doors, control, 1)
    with pytest.raises(IllegalTransition, match="is running: only a run that has failed or was stopped") as caught:
        control.resume(row.name, actor="ada")
    assert "flq explain" in (caught.value.hint or "")
    end(db, row.run_id, Outcome.COMPLETED)
    with pytest.raises(IllegalTransition, match="has completed: there is nothing to resume") as caught:
        control.resume(row.name, actor="ada")
    assert f"flq rerun {row.name}" in (caught.value.hint or "")
    with pytest.raises(RunUnknown):
        control.resume("nobody", actor="ada")
    other, _ = committed(doors, control, 1)
    end(db, other.run_id, Outcome.FAILED)
    retention.prune(db, Scope(runs=(other.run_id,), age=None, payloads=True, history=False))
    with pytest.raises(IllegalTransition, match="was pruned") as caught:
        control.resume(other.name, actor="ada")
    assert f"flq rerun {other.name}" in (caught.value.hint or "")
    assert control.run(other.name).outcome == Outcome.FAILED


# fork


def test_a_fork_goes_on_behind_the_round_with_the_parents_app_seed_and_settings(
    doors: Doors, db: Database, control: DbControl
):
    parent, checkpoints = committed(doors, control, 4, keep_checkpoints=0, priority=2, select=("a",), seed=11)
    row = control.derive(parent.name, derivation(from_round=2, config={"rounds": 9}, name="branched"))
    assert (row.name, row.status, row.owner, row.config) == ("branched", RunStatus.PENDING, "bob", {"rounds": 9})
    assert (row.forked_from, row.forked_from_round, row.rerun_of) == (parent.name, 2, None)
    assert (row.app, row.bundle, row.select) == (parent.app, parent.bundle, parent.select)
    assert control.run(parent.name).config == parent.config
    table = control.query(
        "select forked_from, forked_from_round, rounds_done, seed, priority from runs where run = 'branched'"
    )
    assert table.rows == ((parent.name, 2, 2, 11, 2),)
    grid, claim = doors.grid(row.run_id)
    assert claim.run.seed == 11
    assert grid.last_checkpoint() == checkpoints[2]
    commit(grid, 3)
    assert [found.round for found in control.rounds("branched")] == [3]
    assert control.run("branched").rounds_done == 3
    assert in_order(db)


def test_a_fork_keeps_what_it_starts_from_though_its_parent_is_pruned(doors: Doors, db: Database, control: DbControl):
    parent, checkpoints = committed(doors, control, 3)
    row = control.derive(parent.name, derivation(from_round=1))
    end(db, parent.run_id, Outcome.COMPLETED)
    retention.prune(db, Scope(runs=(parent.run_id,), age=None, payloads=False, history=False))
    with db.connection() as connection:
        connection.execute("UPDATE flq_state.object_pin SET pinned_until = '-infinity'")
    with db.transaction() as tx:
        assert collection.sweep(tx).objects == 3  # rounds 0, 2 and 3: nobody has them any more
    grid, _ = doors.grid(row.run_id)
    found = grid.last_checkpoint()
    assert found == checkpoints[1]
    (name,) = found.objects
    into = memoryview(bytearray(len(MODEL) + 1))
    grid.read(name, into)
    assert bytes(into) == MODEL + bytes([1])
    assert in_order(db)
    end(db, row.run_id, Outcome.COMPLETED)
    retention.prune(db, Scope(runs=(parent.run_id,), age=None, payloads=False, history=True))
    assert control.run(row.name).forked_from is None
    assert in_order(db)


def test_a_round_that_is_not_kept_is_said_with_those_that_are(doors: Doors, db: Database, control: DbControl):
    parent, _ = committed(doors, control, 5)
    with pytest.raises(
        CheckpointUnknown, match="keeps no checkpoint of round 2; it keeps those of rounds 3, 4, 5"
    ) as caught:
        control.derive(parent.name, derivation(from_round=2))
    assert f"flq fork {parent.name} --from-round 5" in (caught.value.hint or "")
    fresh = control.submit(act.submission())
    with pytest.raises(CheckpointUnknown, match="keeps no checkpoint of any round"):
        control.derive(fresh.name, derivation(from_round=0))
    assert len(control.runs()) == 2


def test_a_repeated_fork_finds_the_run_and_a_taken_name_is_refused(doors: Doors, control: DbControl):
    parent, _ = committed(doors, control, 1)
    first = control.derive(parent.name, derivation(from_round=1, name="mine"))
    assert control.derive(parent.name, derivation(from_round=1, name="mine")).run_id == first.run_id
    with pytest.raises(UsageError, match="taken"):
        control.derive(parent.name, derivation(from_round=1, name="mine", idempotency_key="another"))
    with pytest.raises(UsageError, match="cannot be a run's name"):
        control.derive(parent.name, derivation(from_round=1, name="My Run"))
    with pytest.raises(RunUnknown):
        control.derive("nobody", derivation(from_round=1))


def test_a_fork_of_a_fork_goes_on_from_its_own_rounds(doors: Doors, db: Database, control: DbControl):
    parent, _ = committed(doors, control, 2)
    child = control.derive(parent.name, derivation(from_round=1, idempotency_key="1"))
    grid, _ = doors.grid(child.run_id)
    last = commit(grid, 2)
    grandchild = control.derive(child.name, derivation(from_round=2, idempotency_key="2"))
    assert (grandchild.forked_from, grandchild.forked_from_round) == (child.name, 2)
    grid, _ = doors.grid(grandchild.run_id)
    assert grid.last_checkpoint() == last
    assert in_order(db)


# rerun


def test_a_rerun_begins_from_scratch_with_the_same_configuration_and_seed(
    doors: Doors, db: Database, control: DbControl
):
    parent, _ = committed(doors, control, 2, seed=5)
    end(db, parent.run_id, Outcome.COMPLETED)
    row = control.derive(parent.name, derivation())
    assert (row.rerun_of, row.forked_from, row.forked_from_round) == (parent.name, None, None)
    assert (row.config, row.bundle, row.rounds_done) == (parent.config, parent.bundle, 0)
    assert control.query("select rerun_of from runs where run = $1", [row.name]).rows == ((parent.name,),)
    grid, claim = doors.grid(row.run_id)
    assert claim.run.seed == 5
    assert grid.last_checkpoint() is None


# attempts that end early, and how long a run may work


def test_attempts_that_commit_rounds_do_not_count_towards_the_cap(doors: Doors, db: Database, control: DbControl):
    row = control.submit(act.submission())
    for number in range(attempts.MAX_ATTEMPTS + 2):
        grid, claim = doors.grid(row.run_id)
        commit(grid, number)
        attempts.release(db, run_id=row.run_id, token=claim.token, reason="it was killed")
    assert control.run(row.name).status == RunStatus.PENDING


def test_an_attempt_that_was_handed_back_by_its_superexec_does_not_count_either(db: Database, control: DbControl):
    row = control.submit(act.submission())
    for _ in range(attempts.MAX_ATTEMPTS + 2):
        claim = act.start_attempt(db, row.run_id)
        attempts.release(db, run_id=row.run_id, token=claim.token, reason="it shut down", excused=True)
    assert control.run(row.name).status == RunStatus.PENDING


def test_attempts_that_fail_in_a_row_begin_later_and_later():
    assert [attempts.back_off(futile) for futile in range(5)] == [0.0, 0.0, 1.0, 2.0, 4.0]


def test_a_run_that_waits_for_its_next_attempt_is_not_dispatched(db: Database):
    claim = act.start_attempt(db)
    run_id = claim.run.run_id
    attempts.release(db, run_id=run_id, token=claim.token, reason="it was killed")
    claim = act.start_attempt(db, run_id)
    attempts.release(db, run_id=run_id, token=claim.token, reason="it was killed")
    with db.connection() as connection:
        connection.execute("UPDATE flq_state.run SET not_before = not_before + interval '1 hour'")
    assert attempts.allocate(db) == []
    with db.connection() as connection:
        connection.execute("UPDATE flq_state.run SET not_before = not_before - interval '2 hours'")
    assert [job.run_id for job in attempts.allocate(db)] == [run_id]


def work_for(db: Database, run_id: RunId, seconds: float) -> None:
    """Let a run have worked for so long in its present attempt."""
    with db.connection() as connection:
        connection.execute(
            "UPDATE flq_state.run SET starting_at = starting_at - make_interval(secs => %s) WHERE run_id = %s",
            [seconds, run_id],
        )


def test_the_wall_time_limit_counts_all_attempts(db: Database, control: DbControl):
    row = control.submit(act.submission(wall_time_limit=100.0))
    claim = act.start_attempt(db, row.run_id)
    work_for(db, row.run_id, 60)
    attempts.release(db, run_id=row.run_id, token=claim.token, reason="it was killed")
    assert 60 <= control.run(row.name).active_time < 70
    claim = act.start_attempt(db, row.run_id)
    left = claim.wall_time_left
    assert left is not None
    assert 30 < left <= 40
    work_for(db, row.run_id, 30)
    assert attempts.end_overlong(db) == 0
    work_for(db, row.run_id, 20)
    assert attempts.end_overlong(db) == 1
    ended = control.run(row.name)
    assert (ended.outcome, ended.reason) == (Outcome.FAILED, "its wall-time limit of 100 s passed")
    assert 110 <= ended.active_time < 120
    assert not attempts.renew(db, run_id=row.run_id, token=claim.token).ours
    assert [found.status for found in control.attempts(row.name)] == [AttemptStatus.ENDED] * 2
    assert in_order(db)


def test_a_superexec_has_some_time_to_end_an_overlong_run_itself(db: Database, control: DbControl):
    row = control.submit(act.submission(wall_time_limit=100.0))
    act.start_attempt(db, row.run_id)
    work_for(db, row.run_id, 102)
    assert attempts.end_overlong(db) == 0
    work_for(db, row.run_id, attempts.OVERLONG_GRACE_SECONDS)
    assert attempts.end_overlong(db) == 1


def test_time_in_which_nobody_held_the_run_does_not_count(db: Database, control: DbControl):
    row = control.submit(act.submission(wall_time_limit=100.0))
    act.start_attempt(db, row.run_id)
    work_for(db, row.run_id, 3600)
    with db.connection() as connection:
        connection.execute("UPDATE flq_state.run_attempt SET lease_until = clock_timestamp() - interval '3590 s'")
    assert attempts.end_overlong(db) == 0
    assert attempts.release_abandoned(db) == 1
    assert control.run(row.name).active_time < 20


def test_a_run_without_time_left_is_resumed_with_a_new_limit_only(db: Database, control: DbControl):
    row = control.submit(act.submission(wall_time_limit=100.0))
    act.start_attempt(db, row.run_id)
    work_for(db, row.run_id, 200)
    attempts.end_overlong(db)
    with pytest.raises(IllegalTransition, match="may work for 100 s") as caught:
        control.resume(row.name, actor="ada")
    assert "--wall-time-limit" in (caught.value.hint or "")
    assert control.resume(row.name, actor="ada", wall_time_limit=500.0).wall_time_limit == 500.0
    left = act.start_attempt(db, row.run_id).wall_time_left
    assert left is not None
    assert 250 < left <= 300
