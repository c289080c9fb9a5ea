"""Two connections on the same rows, one in the middle of its transaction while the other comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from flq.errors import AttemptFenced
from flq.link import attempts, batches, nodes, results, tasks
from flq.link.cursors import Cursors
from flq.link.database import Database
from flq.wire.fleet import Claimed, HostedNode, Lease, NodeSpec
from flq.wire.runs import FeedCursor
from flq.wire.status import ResultStatus, Verdict
from tests.concurrency.overlap import Races
from tests.integration import link_acts as act
from tests.integration.link_acts import Doors

Work = Callable[[Database], Any]


def claiming(process_id: str, hosted: Sequence[HostedNode], *, token: int | None = None, per_node: int = 10) -> Work:
    epochs = {node.node_id: node.epoch for node in hosted}
    cursors = Cursors()
    cursors.host(epochs)

    def claim(db: Database) -> Claimed:
        return tasks.claim(
            db, process_id=process_id, epochs=epochs, cursors=cursors, per_node=per_node, total=1000,
            token=token or act.token(), known=tasks.Batches(),
        )  # fmt: skip

    return claim


def submitting(*leases: Lease, manifest: bytes = b"reply") -> Work:
    return lambda db: results.submit(db, [act.reply(lease, manifest) for lease in leases])


class Scene:
    """One node, one run, some tasks."""

    def __init__(self, doors: Doors, db: Database, tasks_: int = 1) -> None:
        self.db = db
        self.fleet, self.hosted = doors.fleet("a")
        self.grid, self.attempt = doors.grid()
        self.node = self.hosted[0].node_id
        self.pushed = [self.grid.push(act.push(self.node)) for _ in range(tasks_)]
        self.process_id = self.fleet._connected().process_id
        self.run_id = self.attempt.run.run_id

    def cancel(self, db: Database) -> int:
        with db.transaction() as tx:
            return tasks.cancel_batches(tx, self.run_id, [p.batch_id for p in self.pushed], reason="a test")

    def expire(self, db: Database) -> int:
        with db.transaction() as tx:
            return tasks.expire_overdue(tx)

    def end_deadlines(self) -> None:
        with self.db.connection() as connection:
            connection.execute("UPDATE flq_state.batch SET deadline = clock_timestamp()")

    def results(self) -> list[ResultStatus]:
        page = self.grid.arrived([p.batch_id for p in self.pushed], FeedCursor())
        return [key.status for key in page.keys]

    def late(self) -> int:
        with self.db.connection() as connection:
            rows = connection.execute(
                "SELECT sum((details ->> 'count')::int) FROM flq.events WHERE event = 'late results'"
            ).fetchall()
        return int(rows[0][0] or 0)


@pytest.fixture
def scene(doors: Doors, db: Database) -> Scene:
    return Scene(doors, db)


def test_a_claim_does_not_wait_for_another_and_takes_nothing_of_it(scene: Scene, races: Races):
    with races.holding(claiming(scene.process_id, scene.hosted)) as first:
        second = races.beside(claiming(scene.process_id, scene.hosted)).result()
    assert len(first.leases) == 1
    assert second.leases == ()


def test_a_claim_that_looked_before_another_one_took_looks_again(scene: Scene, races: Races):
    with races.having_looked(claiming(scene.process_id, scene.hosted)) as late:
        first = claiming(scene.process_id, scene.hosted)(scene.db)
    assert len(first.leases) == 1
    assert late.result().leases == ()


def test_claims_for_two_nodes_of_one_batch_do_not_get_in_each_others_way(doors: Doors, db: Database, races: Races):
    """What both tasks belong to, the batch and the run, is nobody's."""
    _, hosted = doors.fleet("a", "b")
    grid, _ = doors.grid()
    pushed = grid.push(act.push(*(node.node_id for node in hosted)))
    process_id = act.process().process_id
    with races.holding(claiming(process_id, hosted[:1])) as first:
        second = races.beside(claiming(process_id, hosted[1:])).result()
    found = [lease.key.task_id for lease in (*first.leases, *second.leases)]
    assert found == list(pushed.task_ids)


def test_a_claim_rolled_back_leaves_its_tasks_to_the_next(scene: Scene, races: Races):
    with races.forgetting(claiming(scene.process_id, scene.hosted)) as first:
        assert len(first.leases) == 1
    (lease,) = claiming(scene.process_id, scene.hosted)(scene.db).leases
    assert lease.attempt == 1


def test_a_claim_passes_by_what_is_being_cancelled(scene: Scene, races: Races):
    with races.holding(scene.cancel) as cancelled:
        claimed = races.beside(claiming(scene.process_id, scene.hosted)).result()
    assert (cancelled, claimed.leases) == (1, ())
    assert scene.results() == [ResultStatus.CANCELLED]


def test_a_repeated_claim_passes_by_what_is_being_cancelled(scene: Scene, races: Races):
    claim = claiming(scene.process_id, scene.hosted, token=act.token())
    assert len(claim(scene.db).leases) == 1
    with races.holding(scene.cancel) as cancelled:
        again = races.beside(claim).result()
    assert (cancelled, again.leases) == (1, ())


def test_a_cancellation_waits_for_a_claim_and_ends_what_it_took(scene: Scene, races: Races):
    with races.holding(claiming(scene.process_id, scene.hosted)) as claimed:
        cancelling = races.blocked(scene.cancel)
    assert cancelling.result() == 1
    (lease,) = claimed.leases
    assert submitting(lease)(scene.db) == {lease.key.task_id: Verdict.FENCED}
    assert scene.results() == [ResultStatus.CANCELLED]
    assert scene.late() == 1


def test_a_submit_waits_for_an_expiry_and_is_fenced_and_counted(scene: Scene, races: Races):
    (lease,) = act.claim(scene.fleet, scene.hosted)
    scene.end_deadlines()
    with races.holding(scene.expire) as expired:
        submit = races.blocked(submitting(lease))
    assert expired == 1
    assert submit.result() == {lease.key.task_id: Verdict.FENCED}
    assert submitting(lease)(scene.db) == {lease.key.task_id: Verdict.FENCED}
    assert scene.results() == [ResultStatus.EXPIRED]
    assert scene.late() == 1


def test_an_expiry_waits_for_a_submit_and_finds_the_task_finished(scene: Scene, races: Races):
    (lease,) = act.claim(scene.fleet, scene.hosted)
    scene.end_deadlines()
    with races.holding(submitting(lease)) as verdicts:
        expiry = races.blocked(scene.expire)
    assert verdicts == {lease.key.task_id: Verdict.ACCEPTED}
    assert expiry.result() == 0
    assert scene.results() == [ResultStatus.OK]


def test_of_two_submits_with_one_token_the_second_is_a_duplicate(scene: Scene, races: Races):
    (lease,) = act.claim(scene.fleet, scene.hosted)
    with races.holding(submitting(lease, manifest=b"first")):
        second = races.blocked(submitting(lease, manifest=b"second"))
    assert second.result() == {lease.key.task_id: Verdict.DUPLICATE}
    (result,) = scene.grid.results(scene.grid.arrived([scene.pushed[0].batch_id], FeedCursor()).keys)
    assert result.manifest == b"first"
    assert scene.late() == 0


def test_a_submit_behind_one_that_is_rolled_back_is_accepted(scene: Scene, races: Races):
    (lease,) = act.claim(scene.fleet, scene.hosted)
    with races.forgetting(submitting(lease)):
        second = races.blocked(submitting(lease))
    assert second.result() == {lease.key.task_id: Verdict.ACCEPTED}


def test_a_submit_behind_the_claim_of_another_attempt_is_fenced(scene: Scene, races: Races):
    (lease,) = act.claim(scene.fleet, scene.hosted)
    with scene.db.connection() as connection:
        connection.execute("UPDATE flq_state.task SET lease_until = '-infinity'")
    with races.holding(claiming(scene.process_id, scene.hosted)) as again:
        submit = races.blocked(submitting(lease))
    assert [found.attempt for found in again.leases] == [2]
    assert submit.result() == {lease.key.task_id: Verdict.FENCED}


def test_a_renewal_behind_the_claim_of_another_attempt_has_lost(scene: Scene, races: Races):
    (lease,) = act.claim(scene.fleet, scene.hosted)
    with scene.db.connection() as connection:
        connection.execute("UPDATE flq_state.task SET lease_until = '-infinity'")
    epochs = {node.node_id: node.epoch for node in scene.hosted}
    with races.holding(claiming(scene.process_id, scene.hosted)):
        renewal = races.blocked(lambda db: tasks.renew(db, [lease.key], epochs))
    assert renewal.result().lost == {lease.key.task_id}


def test_a_release_behind_the_claim_of_another_attempt_gives_nothing_back(scene: Scene, races: Races):
    (lease,) = act.claim(scene.fleet, scene.hosted)
    with scene.db.connection() as connection:
        connection.execute("UPDATE flq_state.task SET lease_until = '-infinity'")
    with races.holding(claiming(scene.process_id, scene.hosted)) as claimed:
        release = races.blocked(lambda db: tasks.release(db, [lease.key]))
    release.result()
    assert submitting(*claimed.leases)(scene.db) == {lease.key.task_id: Verdict.ACCEPTED}


def test_a_take_over_in_the_middle_of_a_claim_gets_the_claimed_task(scene: Scene, races: Races):
    spec = act.process()
    with races.holding(claiming(scene.process_id, scene.hosted)) as claimed:
        hosted = races.beside(lambda db: nodes.connect(db, spec, [NodeSpec(name="a")])).result()
        assert races.beside(claiming(spec.process_id, hosted)).result().leases == ()
    (lease,) = claimed.leases
    assert submitting(lease)(scene.db) == {lease.key.task_id: Verdict.FENCED}
    (taken,) = claiming(spec.process_id, hosted)(scene.db).leases
    assert taken.attempt == 2
    assert claiming(scene.process_id, scene.hosted)(scene.db).superseded == {scene.node}
    assert scene.late() == 1


def test_a_repeated_claim_brings_the_message_to_a_process_that_has_not_read_it(scene: Scene):
    claim = claiming(scene.process_id, scene.hosted, token=act.token())
    (first,), (again,) = claim(scene.db).leases, claim(scene.db).leases
    assert (again.branch, again.kind, again.group, again.manifest) == (0, "train", "1", b"message")
    assert first == again


def test_a_superseded_process_that_repeats_its_claim_gets_nothing(scene: Scene):
    token = act.token()
    claim = claiming(scene.process_id, scene.hosted, token=token)
    assert len(claim(scene.db).leases) == 1
    nodes.connect(scene.db, act.process(), [NodeSpec(name="a")])
    again = claim(scene.db)
    assert again.leases == ()
    assert again.superseded == {scene.node}


def test_a_take_over_of_the_run_waits_for_a_push_and_the_push_counts(scene: Scene, races: Races):
    token = scene.attempt.token
    push = act.push(scene.node)
    with races.holding(lambda db: batches.push(db, run_id=scene.run_id, token=token, push=push)):
        taking = races.blocked(lambda db: attempts.release(db, run_id=scene.run_id, token=token, reason="a test"))
    assert taking.result() is True
    assert len(act.claim(scene.fleet, scene.hosted)) == 2


def test_a_push_waits_for_a_take_over_and_writes_nothing(scene: Scene, races: Races):
    token = scene.attempt.token
    push = act.push(scene.node)
    with races.holding(lambda db: attempts.release(db, run_id=scene.run_id, token=token, reason="a test")):
        pushing = races.blocked(lambda db: batches.push(db, run_id=scene.run_id, token=token, push=push))
    with pytest.raises(AttemptFenced):
        pushing.result()
    assert len(act.claim(scene.fleet, scene.hosted)) == 1


def test_of_two_pushes_of_one_sequence_the_second_finds_the_first(scene: Scene, races: Races):
    push = act.push(scene.node)

    def work(db: Database) -> Any:
        return batches.push(db, run_id=scene.run_id, token=scene.attempt.token, push=push)

    with races.holding(work) as first:
        second = races.blocked(work)
    found = second.result()
    assert (found.batch_id, found.task_ids, found.replayed) == (first.batch_id, first.task_ids, True)


def test_a_claim_sees_nothing_of_a_push_that_is_under_way_and_all_of_it_after(scene: Scene, races: Races):
    push = act.push(scene.node)
    claim = claiming(scene.process_id, scene.hosted)
    with races.holding(lambda db: batches.push(db, run_id=scene.run_id, token=scene.attempt.token, push=push)) as made:
        assert len(races.beside(claim).result().leases) == 1
    again = claiming(scene.process_id, scene.hosted)(scene.db)
    assert [lease.key.task_id for lease in again.leases] == list(made.task_ids)


def test_submits_for_one_node_do_not_wait_for_each_other(doors: Doors, db: Database, races: Races):
    """They lock tasks, not their node."""
    scene = Scene(doors, db, tasks_=2)
    first, second = act.claim(scene.fleet, scene.hosted)
    with races.holding(submitting(first)):
        verdicts = races.beside(submitting(second)).result()
    assert verdicts == {second.key.task_id: Verdict.ACCEPTED}


@pytest.mark.parametrize("by_key", [False, True])
@pytest.mark.parametrize("name", ["submit", "renew", "release", "cancel"])
def test_rows_are_locked_by_node_before_they_are_by_task(
    doors: Doors, db: Database, races: Races, name: str, *, by_key: bool
):
    """The task of the higher node is the older one: whoever waits for the lower node's does not hold it."""
    fleet, hosted = doors.fleet("a", "b")
    grid, claim = doors.grid()
    low, high = (node.node_id for node in hosted)
    pushed = grid.push(act.push(high, low))
    older, younger = pushed.task_ids
    leases = sorted(act.claim(fleet, hosted), key=lambda lease: lease.key.task_id)
    epochs = {node.node_id: node.epoch for node in hosted}

    def cancel(db: Database) -> int:
        with db.transaction() as tx:
            return tasks.cancel_batches(tx, claim.run.run_id, [pushed.batch_id], reason="a test")

    works: dict[str, Work] = {
        "submit": submitting(*leases),
        "renew": lambda db: tasks.renew(db, [lease.key for lease in leases], epochs),
        "release": lambda db: tasks.release(db, [lease.key for lease in leases]),
        "cancel": cancel,
    }
    with db.transaction() as holder:
        holder.execute("SELECT FROM flq_state.task WHERE task_id = %s FOR UPDATE", [younger])
        call = races.blocked(works[name], by_key=by_key)
        with db.transaction() as other:
            found = other.execute("SELECT FROM flq_state.task WHERE task_id = %s FOR UPDATE NOWAIT", [older])
            assert found.rowcount == 1
    call.result()


@pytest.mark.parametrize("by_key", [False, True])
@pytest.mark.parametrize("name", ["submit", "renew", "release", "cancel"])
def test_rows_are_locked_in_key_order_whatever_the_order_of_the_call(
    doors: Doors, db: Database, races: Races, name: str, *, by_key: bool
):
    """While another holds the lowest key, whoever comes with any order waits there and holds none of the others."""
    scene = Scene(doors, db, tasks_=3)
    leases = act.claim(scene.fleet, scene.hosted)
    lowest, _, highest = sorted(lease.key.task_id for lease in leases)
    epochs = {node.node_id: node.epoch for node in scene.hosted}
    backward = sorted(leases, key=lambda lease: -lease.key.task_id)
    works: dict[str, Work] = {
        "submit": submitting(*backward),
        "renew": lambda db: tasks.renew(db, [lease.key for lease in backward], epochs),
        "release": lambda db: tasks.release(db, [lease.key for lease in backward]),
        "cancel": scene.cancel,
    }
    with db.transaction() as holder:
        holder.execute("SELECT FROM flq_state.task WHERE task_id = %s FOR UPDATE", [lowest])
        first = races.blocked(works[name], by_key=by_key)
        second = races.blocked(submitting(*leases), by_key=by_key)
        with db.transaction() as other:
            found = other.execute("SELECT FROM flq_state.task WHERE task_id = %s FOR UPDATE NOWAIT", [highest])
            assert found.rowcount == 1
    first.result()
    second.result()
