"""Worker processes that are killed from outside: their tasks are done again, but not for ever."""

from __future__ import annotations

import threading

import numpy as np

from flq.node.supernode import SuperNode
from flq.wire.records import ArrayRecord, ConfigRecord, RecordDict
from tests.fleet_double import FleetDouble, supernode
from tests.node_app import node_options, write_app
from tests.waiting import eventually

KILLED_BEFORE = """
@app.train()
def train(msg, context):
    if context.attempt < {attempt}:
        os.kill(os.getpid(), signal.SIGKILL)
    return Message(RecordDict({{"c": ConfigRecord({{"attempt": context.attempt}})}}), reply_to=msg)
"""


def test_a_task_whose_process_was_killed_is_done_again_and_the_run_is_told(tmp_path):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)):
        run = fleet.add_run(write_app(tmp_path / "app", KILLED_BEFORE.format(attempt=3)))
        (task,) = fleet.push(run, ["node"])
        assert fleet.content(task) == RecordDict({"c": ConfigRecord({"attempt": 3})})
        told = [
            (source, line)
            for source, level, line in fleet.output(run)
            if level == "WARNING" and line.startswith("train is done again: the process of the ClientApp was killed")
        ]
        assert [source for source, _ in told] == ["node", "node"]
        assert fleet.released == [task, task]


def test_a_task_that_kills_its_process_each_time_ends_as_an_error(tmp_path):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)):
        run = fleet.add_run(write_app(tmp_path / "app", KILLED_BEFORE.format(attempt=100)))
        (task,) = fleet.push(run, ["node"])
        code, text = fleet.error(task)
        assert code == 8
        assert "was killed by SIGKILL" in text
        assert fleet.released == [task, task]
        eventually(lambda: not fleet.open, what="the end of the task")


TWO_ARRAYS = """
@app.train()
def train(msg, context):
    arrays = [np.full(40_000, float(number)) for number in range(2)]
    return Message(RecordDict({"a": ArrayRecord(arrays)}), reply_to=msg)
"""


def test_a_second_process_with_the_same_folder_takes_nothing_away_before_it_has_connected(tmp_path):
    fleet = FleetDouble()
    uploading, go_on = threading.Event(), threading.Event()

    def hold_up() -> None:
        uploading.set()
        assert go_on.wait(20)

    fleet.before_put = hold_up
    with supernode(fleet, node_options(tmp_path)):
        run = fleet.add_run(write_app(tmp_path / "app", TWO_ARRAYS))
        (task,) = fleet.push(run, ["node"])
        assert uploading.wait(20)
        SuperNode(fleet, node_options(tmp_path))
        go_on.set()
        assert fleet.content(task) == RecordDict({"a": ArrayRecord([np.zeros(40_000), np.ones(40_000)])})
