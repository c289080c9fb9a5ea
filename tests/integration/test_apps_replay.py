"""A later attempt is given what the one before was given, and no client trains twice for it."""

# ruff: noqa: NPY002, S311 - apps draw from the generators that these rules advise against

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from flq.apps import ArrayRecord, ClientApp, ConfigRecord, Context, Grid, Message, MetricRecord, RecordDict
from flq.apps.checkpoints import Checkpoints
from flq.apps.generators import seed_run
from flq.apps.strategy import FedAvg, Result
from flq.errors import AttemptFenced
from flq.link import attempts, collection, events, verify
from flq.link.attempts import AttemptClaim
from flq.link.database import Database
from flq.wire.fleet import Lease
from flq.wire.grid import Checkpoint, StepKind
from flq.wire.ids import RunId
from flq.wire.status import ResultStatus
from tests.integration import link_acts as act
from tests.integration.link_acts import Doors
from tests.integration.test_apps_grid import answer, supernode

SIZE = 10_000
"""So many numbers are an object of their own."""

Main = Callable[[Grid, Context], Any]


class Killed(BaseException):
    """The ServerApp's process is gone."""


def echo_app() -> ClientApp:
    """Tells its node and what it was asked."""
    app = ClientApp()

    @app.query()
    def query(msg: Message, context: Context) -> Message:
        arrays = ArrayRecord([np.full(20_000, context.node_id, np.float64)])
        return Message(RecordDict({"arrays": arrays}), reply_to=msg)

    @app.train()
    def train(msg: Message, context: Context) -> Message:
        (model,) = msg.content.array_records["arrays"].to_numpy_ndarrays()
        arrays = ArrayRecord([model + context.node_id / 7])
        return Message(RecordDict({"arrays": arrays, "m": MetricRecord({"num-examples": 1})}), reply_to=msg)

    return app


def to(node_ids: list[int], kind: str = "query", **numbers: int) -> list[Message]:
    content = RecordDict({"config": ConfigRecord(dict(numbers))})
    return [Message(content, node_id, kind) for node_id in node_ids]


def kill(db: Database, claim: AttemptClaim) -> None:
    """End an attempt, and collect what its commits have released: nothing of that must be missed."""
    attempts.release(db, run_id=claim.run.run_id, token=claim.token, reason="it was killed")
    with db.connection() as connection:
        connection.execute("UPDATE flq_state.object_pin SET pinned_until = clock_timestamp()")
    collection.collect(db)


def nodes_of(replies: list[Message]) -> list[int]:
    return [reply.metadata.src_node_id for reply in replies]


def in_order(db: Database) -> None:
    assert [(found.invariant, found.broken) for found in verify.run(db) if not found.holds] == []


def stored(db: Database) -> tuple[int, int]:
    """How many tasks are open, and how many have ended."""
    with db.connection() as connection:
        row = connection.execute(
            "SELECT (SELECT count(*) FROM flq_state.task), (SELECT count(*) FROM flq_state.result)"
        ).fetchone()
    assert row is not None
    return row


def test_a_later_attempt_is_given_the_same_nodes_replies_and_time_outs(doors: Doors, db: Database):
    fleet, hosted = doors.fleet("a", "b")
    a, b = (node.node_id for node in hosted)
    app = echo_app()

    def reply(lease: Lease) -> None:
        fleet.submit([answer(app, fleet, lease, last=False)])

    door, claim = doors.grid()
    grid = Grid(door)
    assert grid.get_node_ids() == [a, b]
    asked = grid.push_messages(to([a, b]))
    leases = {lease.key.node_id: lease for lease in act.claim(fleet, hosted)}
    pulled = [grid.pull_messages(asked)]
    reply(leases[b])
    pulled += [grid.pull_messages(asked), grid.pull_messages(asked)]
    reply(leases[a])
    pulled.append(grid.pull_messages(asked))
    replies = grid.send_and_receive(to([a, b], round=1), timeout=0)
    (leased,) = (lease for lease in act.claim(fleet, hosted) if lease.key.node_id == a)
    reply(leased)
    waited = [(message.metadata.src_node_id, message.has_error()) for message in replies]
    last = grid.push_messages(to([a], round=2))
    assert ([nodes_of(some) for some in pulled], waited) == ([[], [b], [], [a]], [(a, False), (b, True)])
    before = stored(db)

    doors.fleet("c")  # more nodes are there now, and everything has been answered
    kill(db, claim)
    door, claim = doors.grid(claim.run.run_id)
    grid = Grid(door)
    assert grid.get_node_ids() == [a, b]
    assert grid.push_messages(to([a, b])) == asked
    assert [nodes_of(grid.pull_messages(asked)) for _ in pulled] == [[], [b], [], [a]]
    again = grid.send_and_receive(to([a, b], round=1), timeout=0)
    assert [(message.metadata.src_node_id, message.has_error()) for message in again] == waited
    assert grid.push_messages(to([a], round=2)) == last
    assert (stored(db), claim.attempt) == (before, 2)
    assert len(grid.get_node_ids()) == 3  # behind the last step that was recorded it is on its own
    assert "diverged" not in {event.event for event in events.listing(db, claim.run.run_id)}
    in_order(db)


def test_what_ended_without_a_reply_and_without_being_told_is_issued_anew(doors: Doors, db: Database):
    fleet, hosted = doors.fleet("a", "b")
    ids = [node.node_id for node in hosted]
    app = echo_app()
    door, claim = doors.grid()
    asked = Grid(door).push_messages(to(list(ids)))
    first, _ = act.claim(fleet, hosted)
    fleet.submit([answer(app, fleet, first, last=False)])
    (step,) = door.steps()
    with db.connection() as connection:
        (batch_id, deadline) = connection.execute("SELECT batch_id, deadline FROM flq_state.batch").fetchone() or (0, 0)
    assert (door.cancel([batch_id]), step.kind) == (1, StepKind.PUSH)
    kill(db, claim)

    door, claim = doors.grid(claim.run.run_id)
    grid = Grid(door)
    assert grid.push_messages(to(list(ids))) == asked
    act.poll(fleet)
    (lease,) = act.claim(fleet, hosted)
    assert (str(lease.key.task_id), lease.attempt, lease.deadline > deadline.timestamp()) == (asked[1], 2, True)
    fleet.submit([answer(app, fleet, lease, last=False)])
    assert [reply.has_error() for reply in grid.pull_messages(asked)] == [False, False]
    assert "issued anew" in {event.event for event in events.listing(db, claim.run.run_id)}
    in_order(db)


def test_an_attempt_that_goes_another_way_is_told_and_the_next_one_follows_it(doors: Doors, db: Database):
    _, hosted = doors.fleet("a", "b")
    ids = [node.node_id for node in hosted]
    door, claim = doors.grid()
    grid = Grid(door)
    same, old = grid.push_messages(to(list(ids))), grid.push_messages(to(list(ids), round=1))
    grid.push_messages(to(list(ids), round=2))
    run_id = claim.run.run_id
    kill(db, claim)

    door, claim = doors.grid(run_id)
    grid = Grid(door)
    assert grid.push_messages(to(list(ids))) == same
    new = grid.push_messages(to(list(ids), round=7))
    assert not set(new) & set(old)
    with db.connection() as connection:
        cancelled = connection.execute(
            "SELECT count(*) FROM flq_state.result WHERE status = %s", [ResultStatus.CANCELLED]
        ).fetchone()
        told = connection.execute("SELECT details FROM flq_state.run_event WHERE event = 'diverged'").fetchall()
    assert cancelled == (4,)
    ((details,),) = told
    assert (details["sequence"], len(details["before"]), len(details["now"])) == (1, 64, 64)
    kill(db, claim)

    door, claim = doors.grid(run_id)
    grid = Grid(door)
    assert (grid.push_messages(to(list(ids))), grid.push_messages(to(list(ids), round=7))) == (same, new)
    assert [step.sequence for step in door.steps()] == [0, 1]
    in_order(db)


def test_a_commit_in_the_place_of_a_push_diverges_too(doors: Doors, db: Database):
    _, hosted = doors.fleet("a")
    door, claim = doors.grid()
    Grid(door).push_messages(to([hosted[0].node_id]))
    kill(db, claim)
    door, claim = doors.grid(claim.run.run_id)
    grid = Grid(door)
    grid.commit_round(1, RecordDict(), {"loss": 0.5})
    grid.push_messages(to([hosted[0].node_id]))
    assert [step.kind for step in door.steps()] == [StepKind.CHECKPOINT, StepKind.PUSH]
    assert [event.event for event in events.listing(db, claim.run.run_id)].count("diverged") == 1
    kill(db, claim)
    door, claim = doors.grid(claim.run.run_id)
    grid = Grid(door)
    grid.push_messages(to([hosted[0].node_id]))  # now a push in the place of the commit
    assert [event.event for event in events.listing(db, claim.run.run_id)].count("diverged") == 2
    in_order(db)


def test_a_round_that_a_stop_has_cut_is_not_committed(doors: Doors, db: Database):
    _, hosted = doors.fleet("a")
    door, claim = doors.grid()
    grid = Grid(door)
    replies = grid.send_and_receive(to([hosted[0].node_id]))
    attempts.stop(db, claim.run.run_id, actor="ada", reason="enough")
    assert [reply.has_error() for reply in replies] == [True]
    with pytest.raises(AttemptFenced):
        grid.commit_round(1, RecordDict(), {})
    assert door.last_checkpoint() is None


def attempt(doors: Doors, db: Database, main: Main, run_id: RunId | None = None, *, killed_at: int = -1) -> Any:
    """A run whose attempts are killed at their commit number `killed_at`: before it if that is even, else behind it."""
    door, claim = doors.grid(run_id)
    commits, commit = 0, door.commit_round

    def counted(checkpoint: Checkpoint) -> None:
        nonlocal commits
        commits += 1
        if commits == killed_at and killed_at % 2 == 0:
            raise Killed
        commit(checkpoint)
        if commits == killed_at:
            raise Killed

    door.commit_round = counted  # type: ignore[method-assign]
    seed_run(claim.run.seed)
    grid = Grid(door)
    context = Context(claim.run.run_id, 1, {}, RecordDict(), {}, attempt=claim.attempt, checkpoints=Checkpoints(grid))
    try:
        return main(grid, context)
    except Killed:
        kill(db, claim)
        return attempt(doors, db, main, claim.run.run_id, killed_at=killed_at if commits > 1 else -1)


def trained(model: np.ndarray, replies: list[Message]) -> np.ndarray:
    return sum((reply.content.array_records["arrays"]["0"].numpy() for reply in replies), np.zeros_like(model))


def looped(grid: Grid, context: Context) -> np.ndarray:
    """A loop written by hand that draws numbers, and leaves one reply of each round to the next."""
    asked = grid.push_messages(to(grid.get_node_ids()))
    greetings: list[Message] = []
    while len(greetings) < len(asked):
        grid.wait(5)
        greetings += grid.pull_messages(asked)
    start = trained(np.zeros(20_000), greetings)[:SIZE]
    state = context.restored or RecordDict(
        {"model": ArrayRecord([start]), "loop": MetricRecord({"round": 0, "late": []})}
    )
    model = state.array_records["model"]["0"].numpy()
    progress: Any = state.metric_records["loop"]
    late = [str(task_id) for task_id in progress["late"]]
    for number in range(progress["round"] + 1, 6):
        content = RecordDict({"arrays": ArrayRecord([model + np.random.normal(size=SIZE) + random.random()])})
        sent = grid.push_messages([Message(content, node_id, "train") for node_id in grid.get_node_ids()])
        waiting, replies = [*late, *sent[:-1]], list[Message]()
        while len(replies) < len(waiting):
            replies += grid.pull_messages(waiting)
            if len(replies) < len(waiting):
                grid.wait(5)
        replies.sort(key=lambda reply: int(reply.metadata.reply_to_message_id))
        model, late = trained(model, replies) / 10, sent[-1:]
        progress = MetricRecord({"round": number, "late": [int(task_id) for task_id in late]})
        state = RecordDict({"model": ArrayRecord([model]), "loop": progress})
        context.checkpoint(state, metrics={"norm": float(np.linalg.norm(model))})
    return model


@pytest.mark.parametrize("killed_at", [1, 2, 3, 4, 5])
def test_a_loop_written_by_hand_ends_with_the_same_model(doors: Doors, db: Database, killed_at: int):
    with supernode(doors, echo_app()) as done:
        expected = attempt(doors, db, looped)
        done.clear()
        model = attempt(doors, db, looped, killed_at=killed_at)
        assert len(done) == len(set(done)) <= 3 * 6  # the last reply of the last round may still be on its way
    assert np.array_equal(model, expected)
    with db.connection() as connection:
        rounds = connection.execute("SELECT round, status FROM flq.rounds ORDER BY run_id, round").fetchall()
    assert rounds == [(number, "committed") for number in range(1, 6)] * 2
    in_order(db)


def drawing(grid: Grid, _context: Context) -> Result:
    """A training whose strategy draws from the global generators, behind questions with large answers."""
    answers = list(grid.send_and_receive(to(grid.get_node_ids())))
    first = np.full(8, np.random.normal())

    class Noisy(FedAvg):
        def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Any) -> Any:
            noisy = [array + np.random.normal(size=array.shape) for array in arrays.to_numpy_ndarrays()]
            return super().configure_train(server_round, ArrayRecord(noisy), config, grid)

    def evaluate(_server_round: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"drawn": float(arrays["0"].numpy()[0]) + random.random()})

    def start(model: ArrayRecord, rounds: int) -> Result:
        return Noisy(fraction_evaluate=0).start(grid, model, num_rounds=rounds, timeout=60, evaluate_fn=evaluate)

    between = start(ArrayRecord([first]), 2)
    shift = np.random.normal() + sum(reply.content.array_records["arrays"]["0"].numpy()[0] for reply in answers)
    return start(ArrayRecord([between.arrays["0"].numpy() + shift]), 3)


@pytest.mark.parametrize("killed_at", [1, 2, 3, 4, 5, 6])
def test_strategies_that_draw_numbers_end_with_the_same_model(doors: Doors, db: Database, killed_at: int):
    with supernode(doors, echo_app()) as done:
        expected = attempt(doors, db, drawing)
        count = len(done)
        done.clear()
        result = attempt(doors, db, drawing, killed_at=killed_at)
        assert len(done) == len(set(done)) == count
    assert result == expected
    in_order(db)
