"""A federation that was used: runs in every state, with attempts, payloads, output and artifacts."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime

from flq.link import attempts, logs, runs
from flq.link.attempts import AttemptClaim
from flq.link.database import Database
from flq.link.grid import DbGrid
from flq.wire.fleet import Reply
from flq.wire.grid import Checkpoint, Delivered, Delivery, DeliveryKind
from flq.wire.ids import NodeId, ObjectHash, RunId
from flq.wire.objects import CHUNK_BYTES
from flq.wire.runs import LogLine
from flq.wire.status import Outcome, ResultStatus
from tests.integration import link_acts as act
from tests.integration.link_acts import Doors

PAYLOAD = CHUNK_BYTES + 7


def store(door: DbGrid, size: int = PAYLOAD) -> ObjectHash:
    data = os.urandom(size)
    name = act.object_of(data)
    door.put(name, memoryview(data))
    return name


def checkpoint(number: int, objects: frozenset[ObjectHash], next_sequence: int) -> Checkpoint:
    return Checkpoint(
        round=number, state=b"state", objects=objects, metrics={"loss": 1 / (number + 1)}, next_sequence=next_sequence
    )


def line(text: str) -> LogLine:
    return LogLine(at=datetime.now(UTC), source="serverapp", level="INFO", text=text)


class Used:
    """Two nodes on one SuperNode, and runs on them."""

    def __init__(self, doors: Doors, db: Database) -> None:
        self.doors = doors
        self.db = db
        self.fleet, self.hosted = doors.fleet("a", "b")

    @property
    def nodes(self) -> list[NodeId]:
        return [node.node_id for node in self.hosted]

    def round(self, grid: DbGrid, claim: AttemptClaim, number: int) -> None:
        """Push a model to the nodes, have it trained, commit: two steps."""
        model, nodes = store(grid), tuple(grid.nodes())
        shown = Delivered((Delivery(kind=DeliveryKind.NODES, node_list=b"nodes"),), {b"nodes": nodes})
        step = 2 * number
        grid.push(act.push(*self.nodes, sequence=step, round=number + 1, objects=frozenset({model}), delivered=shown))
        replies = []
        for lease in act.claim(self.fleet, self.hosted):
            update = store(grid)
            replies.append(act.reply(lease, objects=frozenset({update}), payload_bytes=PAYLOAD, state=True))
        self.submit(replies)
        received = Delivery(kind=DeliveryKind.RECEIVED, task_ids=tuple(reply.key.task_id for reply in replies))
        commit = checkpoint(number, frozenset({store(grid)}), step + 2)
        grid.commit_round(replace(commit, delivered=Delivered((received,))))
        logs.append(self.db, [(claim.run.run_id, line(f"round {number}"))])

    def submit(self, replies: list[Reply]) -> None:
        self.fleet.submit(replies)

    def completed(self, rounds: int = 2) -> RunId:
        """A run that has completed, with an artifact."""
        grid, claim = self.doors.grid()
        for number in range(rounds):
            self.round(grid, claim, number)
        grid.put_artifact("model.npz", store(grid))
        self.end(claim, Outcome.COMPLETED)
        return claim.run.run_id

    def end(self, claim: AttemptClaim, outcome: Outcome) -> None:
        attempts.finish(
            self.db,
            run_id=claim.run.run_id,
            token=claim.token,
            outcome=outcome,
            reason=None if outcome is Outcome.COMPLETED else "boom",
            exit_code=int(outcome is not Outcome.COMPLETED),
        )

    def everything(self) -> None:
        """Runs in every state; tasks released, displaced, failed, leased and queued; an attempt that was followed."""
        self.completed()
        grid, claim = self.doors.grid()
        self.round(grid, claim, 0)
        attempts.release(self.db, run_id=claim.run.run_id, token=claim.token, reason="its host went away")
        grid, claim = self.doors.grid(claim.run.run_id)
        messages = (b"one", b"two")
        grid.push(act.push(*self.nodes, sequence=2, manifests=messages, objects=frozenset({store(grid)})))
        first, second = act.claim(self.fleet, self.hosted)
        self.fleet.release([first.key])
        (again,) = act.claim(self.fleet, self.hosted)
        failed = act.reply(again, status=ResultStatus.ERROR, error_code=8, error_text="it crashed")
        self.fleet.submit([failed])
        with self.db.connection() as connection:
            connection.execute("UPDATE flq_state.task SET lease_until = clock_timestamp() - interval '1 s'")
        (later,) = act.claim(self.fleet, self.hosted)
        assert (later.key.task_id, later.attempt) == (second.key.task_id, 2)
        grid.push(act.push(*self.nodes, sequence=3))
        stopped, _ = self.doors.grid()
        stopped.push(act.push(self.nodes[0], sequence=0))
        row = stopped.run()
        attempts.stop(self.db, row.run_id, actor="ada", reason="enough")
        _, failing = self.doors.grid()
        self.end(failing, Outcome.FAILED)
        runs.submit(self.db, act.submission("waiting"))
