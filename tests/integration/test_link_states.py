"""Which version of its node's client state a task starts from, and which versions are needed."""

from __future__ import annotations

import uuid

import pytest

from flq.link import attempts, lineage, states
from flq.link.database import Database
from flq.wire.fleet import HostedNode, Lease, StateVersion
from flq.wire.grid import Checkpoint
from flq.wire.ids import RunId, TaskId
from flq.wire.runs import Derivation
from flq.wire.status import Outcome, ResultStatus, Verdict
from tests.integration import link_acts as act
from tests.integration.link_acts import Doors

Version = tuple[RunId, TaskId]


class Federation:
    """A SuperNode that hosts nodes `a` and `b`, and the ServerApp of a run; what is not said is of node `a`."""

    def __init__(self, doors: Doors, db: Database) -> None:
        self._doors = doors
        self._db = db
        self.fleet, (self.a, self.b) = doors.fleet("a", "b")
        self.start()

    def start(self, run_id: RunId | None = None) -> RunId:
        """A new run, or the next attempt of one."""
        self._grid, self._claim = self._doors.grid(run_id)
        self.run_id = self._claim.run.run_id
        return self.run_id

    def again(self) -> None:
        attempts.release(self._db, run_id=self.run_id, token=self._claim.token, reason="its host went away")
        self.start(self.run_id)

    def end(self, *, hours_ago: int = 0) -> None:
        attempts.finish(
            self._db,
            run_id=self.run_id,
            token=self._claim.token,
            outcome=Outcome.COMPLETED,
            reason=None,
            exit_code=0,
        )
        self.set_run("finished_at = finished_at - make_interval(hours => %s::int)", hours_ago)

    def fork(self, parent: RunId, number: int) -> RunId:
        """A run that goes on behind a round of another one."""
        derivation = Derivation(owner="ada", idempotency_key=uuid.uuid4().hex, from_round=number)
        return self.start(lineage.derive(self._db, parent, derivation))

    def keep_checkpoints(self, count: int) -> None:
        self.set_run("keep_checkpoints = %s", count)

    def set_run(self, what: str, *values: int) -> None:
        with self._db.connection() as connection:
            connection.execute(f"UPDATE flq_state.run SET {what} WHERE run_id = %s".encode(), [*values, self.run_id])

    def commit(self, number: int, next_sequence: int) -> None:
        """Commit a round by the step before `next_sequence`."""
        self._grid.commit_round(
            Checkpoint(round=number, state=b"state", objects=frozenset(), metrics={}, next_sequence=next_sequence)
        )

    def pushed(self, sequence: int, *, node: HostedNode | None = None, group: str = "1") -> Lease:
        """Push a task and claim it."""
        node = node or self.a
        self._grid.push(act.push(node.node_id, sequence=sequence, group=group))
        (lease,) = act.claim(self.fleet, [node])
        return lease

    def answer(self, lease: Lease, *, state: bool = True) -> TaskId:
        assert self.fleet.submit([act.reply(lease, state=state)]) == {lease.key.task_id: Verdict.ACCEPTED}
        return lease.key.task_id

    def train(self, sequence: int, *, state: bool = True, group: str = "1") -> TaskId:
        return self.answer(self.pushed(sequence, group=group), state=state)

    def base(self, lease: Lease) -> Version | None:
        found = self.fleet.state_bases([lease.key])[lease.key.task_id].version
        assert found is None or found.node_id == lease.key.node_id
        return None if found is None else (found.run_id, found.task_id)

    def needed(self, *versions: TaskId, run_id: RunId | None = None) -> list[TaskId]:
        """Those of some versions of a run that are needed."""
        asked = {
            StateVersion(run_id=run_id or self.run_id, node_id=self.a.node_id, task_id=task_id) for task_id in versions
        }
        return sorted(version.task_id for version in asked - self.fleet.unneeded_states(asked))


@pytest.fixture
def federation(doors: Doors, db: Database) -> Federation:
    return Federation(doors, db)


# --- what a task starts from


def test_the_first_task_starts_from_nothing(federation: Federation):
    assert federation.base(federation.pushed(0)) is None


def test_a_reply_that_came_too_late_has_left_nothing(federation: Federation, db: Database):
    lost = federation.pushed(0)
    with db.connection() as connection:
        connection.execute("UPDATE flq_state.task SET lease_until = '-infinity'")
    act.poll(federation.fleet)
    (won,) = act.claim(federation.fleet, [federation.a])
    assert federation.fleet.submit([act.reply(lost, state=True)]) == {lost.key.task_id: Verdict.FENCED}
    federation.answer(won, state=False)
    assert federation.base(federation.pushed(1)) is None


def test_a_task_starts_from_what_the_newest_accepted_reply_before_it_has_left(federation: Federation):
    federation.train(0)
    second = federation.train(1)
    federation.train(2, state=False)
    assert federation.base(federation.pushed(3)) == (federation.run_id, second)


def test_versions_are_of_one_node_and_one_run(federation: Federation):
    federation.train(0)
    assert federation.base(federation.pushed(1, node=federation.b)) is None
    federation.start()
    assert federation.base(federation.pushed(0)) is None


def test_errors_and_fenced_replies_leave_no_version(federation: Federation):
    failed = act.reply(federation.pushed(0), status=ResultStatus.ERROR, error_code=2, error_text="no")
    federation.fleet.submit([failed])
    lease = federation.pushed(1)
    federation.fleet.release([lease.key])
    late = act.reply(lease, state=True)
    assert federation.fleet.submit([late]) == {lease.key.task_id: Verdict.FENCED}
    (again,) = act.claim(federation.fleet, [federation.a])
    assert federation.base(again) is None


def test_a_duplicate_leaves_the_version_that_it_has_left(federation: Federation):
    lease = federation.pushed(0)
    version = federation.answer(lease)
    assert federation.fleet.submit([act.reply(lease, state=True)]) == {version: Verdict.DUPLICATE}
    assert federation.base(federation.pushed(1)) == (federation.run_id, version)


def test_every_attempt_at_a_task_starts_from_the_same_version(federation: Federation):
    version = federation.train(0)
    first = federation.pushed(1)
    second = federation.pushed(2)
    federation.fleet.release([first.key])
    federation.answer(second)
    (again,) = act.claim(federation.fleet, [federation.a])
    assert (again.key.task_id, again.attempt) == (first.key.task_id, 2)
    assert federation.base(first) == federation.base(again) == (federation.run_id, version)
    third = federation.pushed(3)
    bases = federation.fleet.state_bases([again.key, third.key])
    assert [bases[lease.key.task_id].is_newest for lease in (again, third)] == [False, True]


def test_a_branch_goes_back_to_what_was_there_where_it_begins(federation: Federation):
    kept = federation.train(0)
    federation.train(1)
    given_up = federation.train(2)
    federation.again()
    anew = federation.pushed(1, group="another")
    assert federation.base(anew) == (federation.run_id, kept)
    assert anew.branch != 0
    version = federation.answer(anew)
    assert federation.base(federation.pushed(2, group="another")) == (federation.run_id, version)
    assert given_up not in federation.needed(kept, given_up, version)


def test_a_branch_goes_back_over_an_earlier_one(federation: Federation):
    kept = federation.train(0)
    federation.train(1)
    for group in ("second", "third"):
        federation.again()
        lease = federation.pushed(1, group=group)
        assert federation.base(lease) == (federation.run_id, kept)
        federation.answer(lease)


def test_a_task_that_was_open_when_a_branch_began_counts_if_its_step_came_before(federation: Federation):
    early = federation.pushed(0)
    federation.pushed(1)
    federation.again()
    anew = federation.pushed(1, group="another")
    version = federation.answer(early)
    assert federation.base(anew) == (federation.run_id, version)


# --- forks


def test_a_fork_starts_from_what_its_parent_had_at_the_round(federation: Federation):
    parent = federation.run_id
    first = federation.train(0)
    federation.commit(1, 2)
    federation.train(2)
    federation.commit(2, 4)
    federation.fork(parent, 1)
    lease = federation.pushed(2)
    assert federation.base(lease) == (parent, first)
    own = federation.answer(lease)
    assert federation.base(federation.pushed(3)) == (federation.run_id, own)


def test_a_fork_of_a_fork_finds_what_its_parents_parent_had(federation: Federation):
    grandparent = federation.run_id
    version = federation.train(0)
    federation.commit(1, 2)
    federation.train(2)
    parent = federation.fork(grandparent, 1)
    federation.commit(2, 4)
    federation.fork(parent, 2)
    assert federation.base(federation.pushed(4)) == (grandparent, version)


def test_a_fork_from_a_round_of_a_branch_that_was_given_up(federation: Federation):
    parent = federation.run_id
    federation.train(0)
    second = federation.train(1)
    federation.commit(1, 3)
    federation.again()
    federation.train(1, group="another")
    federation.fork(parent, 1)
    assert federation.base(federation.pushed(3)) == (parent, second)


def test_a_rerun_starts_from_nothing(federation: Federation):
    federation.train(0)
    federation.start()
    assert federation.base(federation.pushed(0)) is None


# --- what is needed


def test_the_newest_version_is_needed(federation: Federation):
    version = federation.train(0)
    assert federation.needed(version) == [version]


def test_unknown_versions_are_not_needed(federation: Federation):
    assert federation.needed(TaskId(4711), run_id=RunId(4711)) == []


def test_kept_checkpoints_need_what_their_nodes_had(federation: Federation):
    versions = []
    for number in range(6):
        versions += [federation.train(3 * number), federation.train(3 * number + 1)]
        federation.commit(number, 3 * number + 3)
    # those at the ends of the newest three rounds
    assert federation.needed(*versions) == [versions[7], versions[9], versions[11]]


def test_a_run_that_keeps_all_checkpoints_keeps_all_versions(federation: Federation):
    federation.keep_checkpoints(0)
    versions = [federation.train(number) for number in range(3)]
    federation.commit(1, 4)
    assert federation.needed(*versions) == versions


def test_a_repetition_of_the_steps_since_the_newest_checkpoint_may_start_from_any_of_the_newest(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(states, "KEPT_SINCE_CHECKPOINT", 3)
    before = federation.train(0)
    federation.train(1)
    federation.commit(1, 3)
    since = [federation.train(number) for number in range(3, 8)]
    assert federation.needed(before, *since) == since[2:]


def test_a_run_that_ended_long_ago_needs_nothing(federation: Federation):
    version = federation.train(0)
    federation.commit(1, 2)
    federation.end(hours_ago=23)
    assert federation.needed(version) == [version]
    federation.set_run("finished_at = finished_at - make_interval(hours => %s::int)", 2)
    assert federation.needed(version) == []


def test_a_fork_needs_what_it_started_from_after_its_parents_end(federation: Federation):
    parent = federation.run_id
    version = federation.train(0)
    federation.commit(1, 2)
    later = federation.train(2)
    federation.end(hours_ago=48)
    child = federation.fork(parent, 1)
    assert federation.needed(version, later, run_id=parent) == [version]
    federation.end(hours_ago=48)
    assert federation.needed(version, run_id=parent) == []
    federation.fork(child, 1)
    assert federation.needed(version, run_id=parent) == [version]
