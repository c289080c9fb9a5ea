"""A node's disk that is full: its tasks wait for room, and their runs are told; nothing ends as an error."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from flq.wire.records import ArrayRecord, ConfigRecord, RecordDict
from tests.fleet_double import FleetDouble, supernode
from tests.node_app import node_options, write_app
from tests.waiting import eventually

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small file system")

LARGE = 40_000
"""So many floats are an object of their own."""

COUNTS = """
@app.query()
def query(msg, context):
    asked = context.state["c"]["asked"] + 1 if context.state else 1
    context.state["c"] = ConfigRecord({"asked": asked, "padding": "x" * 100_000})
    content = RecordDict({"asked": ConfigRecord({"asked": asked, "attempt": context.attempt})})
    if msg.content:
        content["a"] = ArrayRecord([msg.content["a"].to_numpy_ndarrays()[0] + 1])
    return Message(content, reply_to=msg)
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def full(disk: Path) -> Iterator[None]:
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as exc:
            assert exc.errno == errno.ENOSPC  # noqa: PT017 - this is how the loop ends
    yield
    filler.unlink()


def asked(count: int) -> RecordDict:
    return RecordDict({"asked": ConfigRecord({"asked": count, "attempt": 1})})


def test_a_task_whose_state_has_no_room_is_done_again_when_there_is(tmp_path: Path, disk: Path):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path, cache=disk / "cache")):
        run = fleet.add_run(write_app(tmp_path / "app", COUNTS))
        (first,) = fleet.push(run, ["node"], kind="query")
        assert fleet.content(first) == asked(1)
        with full(disk):
            (second,) = fleet.push(run, ["node"], kind="query")
            eventually(
                lambda: any(line.startswith("query waits for room: context.state") for *_, line in fleet.output(run)),
                what="the run to be told",
            )
            assert second not in fleet.results
        assert fleet.content(second) == asked(2)
        assert fleet.released == []


def test_a_message_that_has_no_room_is_waited_for(tmp_path: Path, disk: Path, caplog: pytest.LogCaptureFixture):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path, cache=disk / "cache")):
        run = fleet.add_run(write_app(tmp_path / "app", COUNTS))
        (first,) = fleet.push(run, ["node"], kind="query")
        assert fleet.content(first) == asked(1)
        with full(disk):
            content = RecordDict({"a": ArrayRecord([np.zeros(LARGE)])})
            (second,) = fleet.push(run, ["node"], content, kind="query")
            eventually(lambda: "this disk is full, trying again" in caplog.text, what="the node to say so")
            assert second not in fleet.results
        found = fleet.content(second)
        assert found["a"] == ArrayRecord([np.ones(LARGE)])
