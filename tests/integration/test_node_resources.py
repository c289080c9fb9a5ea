"""What a ClientApp's process may use: GPUs, cores, memory. And a SuperLink that has forgotten its SuperNode."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from flq.errors import LinkError
from flq.link.database import Database
from flq.link.fleet import DbFleet
from flq.wire.fleet import NodeSpec
from tests.fleet_double import FleetDouble, supernode
from tests.integration.link_acts import process
from tests.node_app import node_options, write_app
from tests.waiting import eventually

SEES = """
SEEN = os.environ.get("CUDA_VISIBLE_DEVICES", "unset")  # as a library looks: while the app is loaded

@app.train()
def train(msg, context):
    gate = Path(context.run_config["gate"])
    (gate / f"{context.node_config['partition-id']}").write_text(f"{SEEN} {os.getpid()}")
    while not (gate / "go").exists():
        time.sleep(0.005)
    return Message(RecordDict({"c": ConfigRecord({"seen": SEEN, "pid": os.getpid()})}), reply_to=msg)
"""


class Gate:
    """Where the tasks of a run that `SEES` wait, and what they see."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.config = {"gate": str(folder)}

    def at_work(self, *partitions: int) -> list[str]:
        """What those at work see, once all of them are."""
        files = [self.folder / str(partition) for partition in partitions]
        eventually(lambda: all(file.exists() and file.read_text() for file in files), what=f"tasks {partitions}")
        return [file.read_text().split()[0] for file in files]

    def open(self) -> None:
        (self.folder / "go").touch()


@pytest.fixture
def sees(tmp_path: Path) -> Path:
    return write_app(tmp_path / "app", SEES)


def names(*numbers: int) -> list[str]:
    return [f"node-{number}" for number in numbers]


def seen(fleet: FleetDouble, task: int) -> Mapping[str, object]:
    return fleet.content(task).config_records["c"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("gpus", "slots", "expected"),
    [
        (("0", "1"), 2, ["0", "1"]),
        (("0", "1"), 4, ["0", "0", "1", "1"]),
        (("0", "1", "2", "3"), 2, ["0,1", "2,3"]),
        ((), 2, ["", ""]),
    ],
)
def test_those_at_work_share_the_gpus_evenly(tmp_path, sees, gpus, slots, expected):
    fleet = FleetDouble()
    gate = Gate(tmp_path / "gate")
    with supernode(fleet, node_options(tmp_path, nodes=slots, slots=slots, gpus=gpus)):
        run = fleet.add_run(sees, config=gate.config)
        tasks = fleet.push(run, names(*range(1, slots + 1)))
        if gpus:
            assert sorted(gate.at_work(*range(slots))) == expected
        gate.open()
        assert sorted(str(seen(fleet, task)["seen"]) for task in tasks) == expected


def test_without_the_option_the_variable_is_that_of_the_supernode(tmp_path, sees, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    fleet = FleetDouble()
    gate = Gate(tmp_path / "gate")
    gate.open()
    with supernode(fleet, node_options(tmp_path)):
        (task,) = fleet.push(fleet.add_run(sees, config=gate.config), ["node"])
        assert seen(fleet, task)["seen"] == "5"


def test_two_runs_at_once_use_two_gpus_whatever_their_warm_workers_have(tmp_path, sees):
    """Each run works alone first, then both at once, over and over: never do two at work share a GPU."""
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path, nodes=4, slots=2, gpus=("0", "1"))):
        gates = [Gate(tmp_path / f"gate-{number}") for number in range(2)]
        runs = [fleet.add_run(sees, config=gate.config) for gate in gates]
        for gate, run in zip(gates, runs, strict=True):
            gate.open()
            for task in fleet.push(run, names(1, 2)):  # both runs have workers now, on either GPU
                fleet.content(task)
        devices: dict[object, object] = {}
        for _ in range(4):
            for gate in gates:
                for file in gate.folder.iterdir():
                    file.unlink()
            tasks = [*fleet.push(runs[0], names(1)), *fleet.push(runs[1], names(4))]
            assert sorted([*gates[0].at_work(0), *gates[1].at_work(3)]) == ["0", "1"]
            for gate in gates:
                gate.open()
            for task in tasks:
                found = seen(fleet, task)
                assert devices.setdefault(found["pid"], found["seen"]) == found["seen"]  # for life


def test_slots_share_the_cores(tmp_path, monkeypatch):
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    code = """
    @app.train()
    def train(msg, context):
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        return Message(RecordDict({"c": ConfigRecord({name: os.environ[name] for name in names})}), reply_to=msg)
    """
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path, slots=3)):
        (task,) = fleet.push(fleet.add_run(write_app(tmp_path / "app", code)), ["node"])
        assert set(fleet.content(task).config_records["c"].values()) == {"2"}


# --- memory

HUNGRY = """
@app.train()
def train(msg, context):
    {statement}
    return Message(RecordDict(), reply_to=msg)

@app.evaluate()
def evaluate(msg, context):
    np.ones(10_000_000)
    return Message(RecordDict(), reply_to=msg)
"""

NATIVE = "import ctypes; ctypes.CDLL(None).abort()"


@pytest.mark.skipif(sys.platform != "linux", reason="a limit that only Linux keeps")
@pytest.mark.parametrize(
    ("statement", "code", "texts"),
    [
        ("np.ones(200_000_000)", 2, ["MemoryError", "app/client.py", "node node limits a ClientApp to 500 MB"]),
        ("bytearray(1 << 30)", 2, ["MemoryError", "node node limits a ClientApp to 500 MB"]),
        (NATIVE, 8, ["was killed by SIGABRT", "limits a ClientApp to 500 MB of memory"]),
    ],
)
def test_a_limit_on_memory_is_told(tmp_path, statement, code, texts):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path, memory_bytes=500_000_000)):
        run = fleet.add_run(write_app(tmp_path / "app", HUNGRY.format(statement=statement)))
        (task,) = fleet.push(run, ["node"])
        found, told = fleet.error(task)
        assert found == code
        for text in texts:
            assert text in told
        (task,) = fleet.push(run, ["node"], kind="evaluate")  # less is fine, also for the same worker
        fleet.content(task)


# --- a SuperLink that forgets


class Forgetful(FleetDouble):
    """One that can be made to forget the process, as by a restore of its database."""

    def heartbeat(self) -> None:
        super().heartbeat()
        if not self._process:
            raise LinkError("the SuperLink does not know this process any more")

    def forget(self, *, nodes: bool = False) -> None:
        with self._change:
            self._process = ""
            if nodes:
                self._nodes.clear()


def test_a_forgotten_supernode_connects_again_and_works_on(tmp_path, sees, caplog):
    fleet = Forgetful()
    gate = Gate(tmp_path / "gate")
    with supernode(fleet, node_options(tmp_path)):
        run = fleet.add_run(sees, config=gate.config)
        (task,) = fleet.push(run, ["node"])
        gate.at_work(0)
        epoch = fleet._nodes["node"].hosted.epoch
        fleet.forget()
        eventually(lambda: fleet.calls["connect"] == 2, what="the second connection")
        gate.open()
        fleet.content(task)
        assert fleet._nodes["node"].hosted.epoch == epoch
    assert "does not know this process any more: connecting again" in caplog.text


def test_a_superlink_that_has_forgotten_the_nodes_too_gives_them_new_numbers(tmp_path, sees):
    fleet = Forgetful()
    gate = Gate(tmp_path / "gate")
    with supernode(fleet, node_options(tmp_path)) as running:
        run = fleet.add_run(sees, config=gate.config)
        fleet.push(run, ["node"])
        gate.at_work(0)
        fleet.forget(nodes=True)
        eventually(lambda: fleet.calls["connect"] == 2, what="the second connection")
        eventually(lambda: not len(running.node._scheduler), what="the end of work for a node that is no more")
        gate.open()
        (task,) = fleet.push(run, ["node"])
        fleet.content(task)


def test_a_database_that_has_lost_a_process_takes_it_back(dsn: str, db: Database):
    fleet = DbFleet(dsn)
    spec = process()
    (node,) = fleet.connect(spec, [NodeSpec(name="ward")])
    fleet.heartbeat()
    with db.transaction() as tx:
        tx.execute("UPDATE flq_state.node SET process_id = NULL")
        tx.execute("DELETE FROM flq_state.process WHERE process_id = %s", [spec.process_id])
    with pytest.raises(LinkError, match="does not know this process"):
        fleet.heartbeat()
    (again,) = fleet.connect(spec, [NodeSpec(name="ward")])
    assert again.node_id == node.node_id
    fleet.heartbeat()
    assert not fleet.claim([node.node_id], per_node=1, total=1, token=1).superseded
    fleet.disconnect()
