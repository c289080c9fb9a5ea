"""What apps write against, on a real SuperLink: a training with nodes that claim and submit, and a second attempt."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import numpy as np
import pytest

from flq.apps import ArrayRecord, ClientApp, Context, Grid, Message, Metadata, MetricRecord, RecordDict
from flq.apps.strategy import FedAvg, Result
from flq.errors import AttemptFenced
from flq.link import attempts
from flq.link.database import Database
from flq.link.fleet import DbFleet
from flq.link.grid import DbGrid
from flq.wire.codec import decode, encode, metrics
from flq.wire.fleet import Lease, Reply
from flq.wire.grid import Checkpoint
from flq.wire.ids import ObjectHash
from flq.wire.status import ResultStatus
from tests.integration import link_acts as act
from tests.integration.link_acts import Doors

NODES = ("a", "b", "c")


def adding_app() -> ClientApp:
    """Each node adds its id to the model; the last one fails in round 2."""
    app = ClientApp()

    @app.train()
    def train(msg: Message, context: Context) -> Message:
        if msg.content.config_records["config"]["server-round"] == 2 and context.node_config["last"]:
            raise ZeroDivisionError("by hand")
        (model,) = msg.content.array_records["arrays"].to_numpy_ndarrays()
        arrays, numbers = ArrayRecord([model + context.node_id]), MetricRecord({"num-examples": 1, "loss": 0.5})
        return Message(RecordDict({"arrays": arrays, "m": numbers}), reply_to=msg)

    @app.evaluate()
    def evaluate(msg: Message, _context: Context) -> Message:
        return Message(RecordDict({"m": MetricRecord({"num-examples": 1, "loss": 0.25})}), reply_to=msg)

    return app


def answer(app: ClientApp, fleet: DbFleet, lease: Lease, *, last: bool) -> Reply:
    def fetch(object_hash: ObjectHash, size: int) -> memoryview:
        buffer = memoryview(bytearray(size))
        fleet.read(object_hash, buffer)
        return buffer

    key, now = lease.key, datetime.now(UTC)
    ttl = lease.deadline - lease.created_at
    metadata = Metadata(
        key.run_id, str(key.task_id), 1, key.node_id, "", lease.group, lease.created_at, ttl, lease.kind
    )
    context = Context(key.run_id, key.node_id, {"last": last}, RecordDict(), {})
    try:
        content = app(Message(decode(lease.manifest, fetch), metadata=metadata), context).content
    except ZeroDivisionError as exc:
        return Reply(
            key=key, status=ResultStatus.ERROR, error_code=2, error_text=str(exc), started_at=now, ended_at=now
        )
    encoded = encode(content)
    for object_hash in fleet.missing(encoded.objects):
        fleet.put(object_hash, encoded.objects[object_hash])
    return Reply(
        key=key,
        status=ResultStatus.OK,
        manifest=encoded.manifest,
        objects=frozenset(encoded.objects),
        metrics=metrics(content),
        started_at=now,
        ended_at=now,
    )


@contextmanager
def supernode(doors: Doors, app: ClientApp | None = None) -> Iterator[list[int]]:
    """Hosts the nodes and does their tasks, newest node first; hands out the ids of the tasks that it did."""
    fleet, hosted = doors.fleet(*NODES)
    app, done, stop = app or adding_app(), list[int](), threading.Event()

    def work() -> None:
        while not stop.is_set():
            leases = act.claim(fleet, hosted)
            for lease in reversed(leases):
                fleet.submit([answer(app, fleet, lease, last=lease.key.node_id == hosted[-1].node_id)])
                done.append(lease.key.task_id)
            if not leases:
                fleet.wait(0.1)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield done
    finally:
        stop.set()
        worker.join()


def train(door: DbGrid, rounds: int = 3) -> Result:
    grid = Grid(door)
    start = ArrayRecord([np.zeros(20_000)])

    def evaluate(_server_round: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"accuracy": float(arrays["0"].view()[0])})

    result = FedAvg().start(grid, start, num_rounds=rounds, timeout=60, evaluate_fn=evaluate)
    grid.save_artifact("model.npy", result.arrays["0"].data)
    return result


def test_a_training_is_committed_round_by_round(doors: Doors, db: Database, caplog: pytest.LogCaptureFixture):
    with supernode(doors) as done:
        door, attempt = doors.grid()
        result = train(door)
    ids = [node.node_id for node in door.nodes()]
    mean, without_last = sum(ids) / 3, sum(ids[:2]) / 2
    assert result.arrays["0"].numpy()[0] == pytest.approx(mean + without_last + mean)
    assert len(done) == len(set(done)) == 18
    told = [record.getMessage() for record in caplog.records if "not used" in record.getMessage()]
    assert told == [f"the reply of {door.nodes()[2].name} is not used: error 2: by hand"]
    with db.connection() as connection:
        rounds = connection.execute(
            "SELECT round, status, nodes, errors, metrics FROM flq.rounds ORDER BY round"
        ).fetchall()
        errors = connection.execute("SELECT error_text FROM flq_state.result WHERE status = 'error'").fetchall()
    assert [row[:4] for row in rounds] == [(1, "committed", 3, 0), (2, "committed", 3, 1), (3, "committed", 3, 0)]
    accuracy = pytest.approx(mean + without_last)
    assert rounds[1][4] == {"accuracy": accuracy, "train_loss": 0.5, "eval_loss": 0.25}
    assert errors == [("by hand",)]
    assert attempt.attempt == 1


def test_a_second_attempt_ends_with_the_same_model_and_trains_nobody_twice(
    doors: Doors, db: Database, monkeypatch: pytest.MonkeyPatch
):
    with supernode(doors) as done:
        door, _ = doors.grid()
        expected = train(door)
        done.clear()

        door, claim = doors.grid()
        commit = door.commit_round

        def broken(checkpoint: Checkpoint) -> None:
            if checkpoint.round == 2:
                raise KeyboardInterrupt
            commit(checkpoint)

        monkeypatch.setattr(door, "commit_round", broken)
        with pytest.raises(KeyboardInterrupt):
            train(door)
        attempts.release(db, run_id=claim.run.run_id, token=claim.token, reason="it was killed")
        with pytest.raises(AttemptFenced):
            Grid(door).push_messages([Message(RecordDict(), 2, "train")])
        door, claim = doors.grid(claim.run.run_id)
        assert claim.attempt == 2
        assert train(door) == expected
        assert len(done) == len(set(done)) == 18
