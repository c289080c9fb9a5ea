"""Arrays and client state on their way through a SuperNode."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from flq.node import state
from flq.wire.codec import encode
from flq.wire.fleet import Reply
from flq.wire.records import ArrayRecord, RecordDict
from flq.wire.status import Verdict
from tests.fleet_double import FleetDouble, supernode
from tests.node_app import ECHO, node_options, write_app
from tests.waiting import eventually

ADD = """
@app.train()
def train(msg, context):
    arrays = msg.content["arrays"].to_numpy_ndarrays()
    for array in arrays:
        array += 1  # in place: the buffer is this task's own
    fixed = msg.content["fixed"]
    return Message(RecordDict({"arrays": ArrayRecord(arrays), "fixed": fixed}), reply_to=msg)
"""


def model(megabytes: int) -> RecordDict:
    half = np.zeros(megabytes << 17, dtype=np.float32)
    return RecordDict({"arrays": ArrayRecord([half]), "fixed": ArrayRecord([half + 5])})


def test_large_arrays_there_and_back(tmp_path):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path, nodes=10, slots=2)):
        run = fleet.add_run(write_app(tmp_path / "app", ADD))
        tasks = fleet.push(run, list(fleet.specs), model(10))
        before = set(fleet.objects)
        for task in tasks:
            content = fleet.content(task)
            assert (content.array_records["arrays"]["0"].numpy() == 1).all()
            assert (content.array_records["fixed"]["0"].numpy() == 5).all()
            assert fleet.results[task].objects >= {content.array_records["fixed"]["0"].digest}
        assert set(fleet.reads.values()) == {1}, "each object is fetched once for all nodes"
        assert len(set(fleet.objects) - before) == 1, "what has not changed is not sent again"
        eventually(lambda: not list((tmp_path / "cache" / "scratch").glob("*")), what="the scratch folders to be gone")


def test_messages_of_many_small_arrays(tmp_path):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)):
        run = fleet.add_run(write_app(tmp_path / "app", ECHO))
        content = RecordDict({"a": ArrayRecord([np.full(8_000, float(n)) for n in range(40)])})
        (task,) = fleet.push(run, ["node"], content)
        assert fleet.content(task) == content
        assert len(fleet.results[task].manifest) > 900_000


def test_the_cache_survives_a_restart_and_damage(tmp_path):
    fleet = FleetDouble()
    write_app(tmp_path / "app", ADD)
    for damage in (None, b"", b"\0" * (5 << 20)):
        if damage is not None:
            path = next((tmp_path / "cache" / "objects").iterdir())
            path.write_bytes(damage)
        with supernode(fleet, node_options(tmp_path)):
            run = fleet.add_run(tmp_path / "app")
            (task,) = fleet.push(run, ["node"], model(10))
            assert (fleet.content(task).array_records["arrays"]["0"].numpy() == 1).all()
    assert sorted(fleet.reads.values()) == [1, 3] or sorted(fleet.reads.values()) == [2, 2]


def test_a_cache_that_is_too_small(tmp_path):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path, cache_bytes=1000)):
        run = fleet.add_run(write_app(tmp_path / "app", ADD))
        for _ in range(2):
            (task,) = fleet.push(run, ["node"], model(10))
            fleet.content(task)
            eventually(lambda: not list((tmp_path / "cache" / "objects").iterdir()), what="the objects to be evicted")
    assert set(fleet.reads.values()) == {2}


def test_an_object_that_is_gone(tmp_path):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path, nodes=2)):
        run = fleet.add_run(write_app(tmp_path / "app", ADD))
        objects = set(encode(model(10)).objects)
        with fleet._change:
            tasks = fleet.push(run, ["node-1", "node-2"], model(10))
            for name in objects:
                del fleet.objects[name]
        for task in tasks:
            code, text = fleet.error(task)
            assert code == 3
            assert "cannot be fetched" in text


def test_a_manifest_that_is_none(tmp_path):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)):
        run = fleet.add_run(write_app(tmp_path / "app"))
        with fleet._change:
            (task,) = fleet.push(run, ["node"])
            fleet.open[task].manifest = b"nonsense"
        code, text = fleet.error(task)
        assert (code, "cannot be read" in text) == (3, True)


def test_objects_that_vanish_before_the_submission_are_stored_again(tmp_path):
    fleet = FleetDouble()

    def collect(replies) -> None:
        if fleet.calls["submit"] == 0:
            for name in replies[0].objects:
                fleet.objects.pop(name, None)

    fleet.before_submit = collect
    with supernode(fleet, node_options(tmp_path)):
        run = fleet.add_run(write_app(tmp_path / "app", ADD))
        (task,) = fleet.push(run, ["node"], model(10))
        assert (fleet.content(task).array_records["fixed"]["0"].numpy() == 5).all()


def test_a_slow_upload_holds_up_nothing_else(tmp_path):
    fleet = FleetDouble()
    gate = threading.Event()
    fleet.before_put = lambda: gate.wait(20)
    code = (
        ADD
        + """
@app.evaluate()
def evaluate(msg, context):
    return Message(RecordDict(), reply_to=msg)
"""
    )
    try:
        with supernode(fleet, node_options(tmp_path, nodes=2)):
            run = fleet.add_run(write_app(tmp_path / "app", code))
            (large,) = fleet.push(run, ["node-1"], model(10))
            eventually(lambda: fleet.calls["missing"], what="the upload")
            (small,) = fleet.push(run, ["node-2"], kind="evaluate")
            fleet.content(small)
            assert large not in fleet.results
            gate.set()
            fleet.content(large)
    finally:
        gate.set()


# --- context.state

COUNT = """
@app.train()
def train(msg, context):
    before = context.state["c"]["count"] if "c" in context.state else 0
    context.state["c"] = ConfigRecord({"count": before + 1})
    context.state["big"] = ArrayRecord([np.full(50_000, before + 1.0)])
    return Message(RecordDict({"c": ConfigRecord({"before": before, "attempt": context.attempt})}), reply_to=msg)

@app.evaluate()
def evaluate(msg, context):
    state = context.state
    found = {"count": state["c"]["count"], "big": float(state["big"]["0"].numpy()[-1])} if state else {}
    return Message(RecordDict({"c": ConfigRecord(found)}), reply_to=msg)

@app.query()
def query(msg, context):
    context.state.clear()
    return Message(RecordDict(), reply_to=msg)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_app(tmp_path / "app", COUNT)


def versions(tmp_path: Path) -> list[str]:
    # Unlike glob, walk does not mind folders that vanish under it.
    return sorted(name for _, _, names in os.walk(tmp_path / "cache" / "state") for name in names)


def test_state_is_kept_per_run_and_node(tmp_path, project):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path, nodes=2, slots=2)):
        runs = [fleet.add_run(project) for _ in range(2)]
        for expected in range(3):
            for run in runs:
                for task in fleet.push(run, ["node-1", "node-2"]):
                    assert fleet.content(task).config_records["c"]["before"] == expected
        (task,) = fleet.push(runs[0], ["node-1"], kind="evaluate")
        assert dict(fleet.content(task).config_records["c"]) == {"count": 3, "big": 3.0}


def test_state_survives_a_restart(tmp_path, project):
    fleet = FleetDouble()
    run = fleet.add_run(project)
    for expected in range(5):
        with supernode(fleet, node_options(tmp_path)):
            (task,) = fleet.push(run, ["node"])
            assert fleet.content(task).config_records["c"]["before"] == expected
    assert len(versions(tmp_path)) == state.KEPT_VERSIONS


def test_a_node_without_state_leaves_no_files(tmp_path, project):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)):
        (task,) = fleet.push(fleet.add_run(project), ["node"], kind="evaluate")
        assert not fleet.content(task).config_records["c"]
    assert versions(tmp_path) == []


def test_state_can_be_cleared(tmp_path, project):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)):
        run = fleet.add_run(project)
        for kind in ("train", "query"):
            (task,) = fleet.push(run, ["node"], kind=kind)
            fleet.content(task)
        (task,) = fleet.push(run, ["node"])
        assert fleet.content(task).config_records["c"]["before"] == 0


def test_a_fenced_result_leaves_no_state(tmp_path, project):
    fleet = FleetDouble()

    class Fencing(FleetDouble):
        def submit(self, replies):
            if self.calls["submit"] == 1:
                self.calls["submit"] += 1
                return {reply.key.task_id: Verdict.FENCED for reply in replies}
            return super().submit(replies)

    fleet = Fencing()
    with supernode(fleet, node_options(tmp_path)) as running:
        run = fleet.add_run(project)
        (first,) = fleet.push(run, ["node"])
        fleet.content(first)
        (second,) = fleet.push(run, ["node"])
        eventually(lambda: fleet.calls["submit"] == 2 and not len(running.node._scheduler), what="the fenced result")
        fleet.lapse(second)
        assert dict(fleet.content(second).config_records["c"]) == {"before": 1, "attempt": 2}
        assert versions(tmp_path) == [f"{first}.state", f"{second}.state"]


def test_the_next_task_waits_for_the_state_of_the_one_before(tmp_path, project):
    fleet = FleetDouble()
    gate = threading.Event()
    fleet.before_submit = lambda _replies: gate.wait(20)
    try:
        with supernode(fleet, node_options(tmp_path, slots=2)):
            run = fleet.add_run(project)
            tasks = [fleet.push(run, ["node"])[0] for _ in range(3)]
            eventually(lambda: versions(tmp_path), what="the first staged state")
            gate.set()
            assert [fleet.content(task).config_records["c"]["before"] for task in tasks] == [0, 1, 2]
    finally:
        gate.set()


@pytest.mark.parametrize("accepted", [True, False])
def test_a_supernode_that_dies_before_the_verdict(tmp_path, project, accepted):
    """Its successor hands the reply in again, and so finds out what became of it."""
    fleet = FleetDouble()

    def die(replies: Sequence[Reply]) -> None:
        kept.extend(replies)
        if accepted:
            for reply in replies:
                fleet._submit(reply)
        fleet.fail(unreachable=True)

    kept: list[Reply] = []
    fleet.before_submit = die
    with supernode(fleet, node_options(tmp_path)) as running:
        run = fleet.add_run(project)
        (task,) = fleet.push(run, ["node"])
        eventually(lambda: kept, what="the submission")
        running.node.stop()
        running.node.stop()
    assert [name.partition(".")[2] for name in versions(tmp_path)] == ["reply", "staged"]

    fleet.before_submit = lambda _replies: None
    fleet.unreachable = fleet.connected = False
    with supernode(fleet, node_options(tmp_path)):
        assert fleet.result(task).key == kept[0].key
        (after,) = fleet.push(run, ["node"])
        assert fleet.content(after).config_records["c"]["before"] == 1


def test_state_of_an_ended_run_is_purged(tmp_path, project, monkeypatch):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)):
        ended, going = fleet.add_run(project), fleet.add_run(project)
        for run in (ended, going):
            (task,) = fleet.push(run, ["node"])
            fleet.content(task)
    fleet.stopped.add(ended)
    with supernode(fleet, node_options(tmp_path)):
        eventually(lambda: fleet.calls["ended"], what="the question for ended runs")
    assert len(versions(tmp_path)) == 2, "it is kept for a while: the run may be resumed"
    monkeypatch.setattr(state, "KEEP_SECONDS", 0.0)
    with supernode(fleet, node_options(tmp_path)):
        eventually(lambda: len(versions(tmp_path)) == 1, what="the state to be purged")
        (task,) = fleet.push(going, ["node"])
        assert fleet.content(task).config_records["c"]["before"] == 1


def test_state_that_cannot_be_read_is_no_empty_state(tmp_path, project):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)):
        run = fleet.add_run(project)
        (task,) = fleet.push(run, ["node"])
        fleet.content(task)
        eventually(lambda: versions(tmp_path) == [f"{task}.state"], what="the promotion")
        next((tmp_path / "cache" / "state").glob("*/*/*")).write_bytes(b"garbage")
        (task,) = fleet.push(run, ["node"])
        _code, text = fleet.error(task)
        assert "STATE_UNAVAILABLE" in text
