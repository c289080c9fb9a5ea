"""Arrays on their way through a SuperNode."""

from __future__ import annotations

import threading

import numpy as np

from flq.wire.codec import encode
from flq.wire.records import ArrayRecord, RecordDict
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
            (tmp_path / "cache" / "objects" / min(fleet.reads).hex()).write_bytes(damage)
        with supernode(fleet, node_options(tmp_path)):
            run = fleet.add_run(tmp_path / "app")
            (task,) = fleet.push(run, ["node"], model(10))
            assert (fleet.content(task).array_records["arrays"]["0"].numpy() == 1).all()
    assert fleet.reads == {min(fleet.reads): 3, max(fleet.reads): 1}


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
