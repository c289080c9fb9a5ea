"""A SuperNode among the things that happen to it: stops, outages, take-overs, signals, and its own end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flq.errors import NotAllowed
from flq.node import keeper
from flq.wire.status import ResultStatus
from tests.fleet_double import FleetDouble, supernode
from tests.node_app import node_options, write_app
from tests.waiting import eventually

GATED = """
@app.train()
def train(msg, context):
    # Says who works, and works until it is let go.
    folder = Path(context.run_config["folder"])
    aside = folder / f".{os.getpid()}"
    aside.write_text(str(os.getpid()))
    aside.rename(folder / f"{context.node_config['partition-id']}-{context.attempt}")
    while not (folder / "go").exists():
        time.sleep(0.005)
    return Message(RecordDict({"m": MetricRecord({"attempt": context.attempt})}), reply_to=msg)

@app.evaluate()
def evaluate(msg, context):
    return Message(RecordDict(), reply_to=msg)
"""


class Gate:
    """Where tasks of a `GATED` app wait."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.config = {"folder": str(folder)}

    def worker(self, name: str = "0-1") -> int:
        """The process that works on the task of a partition, in its attempt."""
        path = self.folder / name
        eventually(path.exists, what=f"a worker at task {name}")
        return int(path.read_text())

    def open(self) -> None:
        (self.folder / "go").touch()


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_app(tmp_path / "app", GATED)


@pytest.fixture
def quick_renewals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "RENEW_SECONDS", 0.05)


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_stopped_run_is_gone_at_once(tmp_path, gate, project):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path, nodes=3)) as running:
        run = fleet.add_run(project, config=gate.config)
        fleet.push(run, ["node-1", "node-2", "node-3"])
        worker = gate.worker()
        stopped = time.monotonic()
        fleet.stop(run)
        eventually(lambda: not exists(worker), timeout=2, what="the worker of the stopped run to be gone")
        assert time.monotonic() - stopped < 2
        eventually(lambda: not len(running.node._scheduler), what="the queued tasks to be dropped")
        assert not fleet.results
        other = fleet.add_run(project)
        (task,) = fleet.push(other, ["node-1"], kind="evaluate")
        fleet.content(task)


def test_a_worker_that_ignores_sigterm_is_killed(tmp_path, gate):
    code = GATED.replace("# Says", "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    # Says")
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)):
        run = fleet.add_run(write_app(tmp_path / "app", code), config=gate.config)
        fleet.push(run, ["node"])
        worker = gate.worker()
        fleet.stop(run)
        eventually(lambda: not exists(worker), timeout=2, what="the stubborn worker to be gone")


def test_children_of_a_worker_go_with_it(tmp_path, gate):
    code = GATED.replace("os.getpid()))", 'os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "600")))')
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)):
        run = fleet.add_run(write_app(tmp_path / "app", code), config=gate.config)
        fleet.push(run, ["node"])
        child = gate.worker()
        assert exists(child)
        fleet.stop(run)

        def zombie_or_gone() -> bool:
            return not exists(child) or Path(f"/proc/{child}/stat").read_text().split(")")[1].split()[0] == "Z"

        eventually(zombie_or_gone, timeout=2, what="the worker's child to be gone")


def test_a_child_that_holds_the_socket_does_not_hide_a_crash(tmp_path):
    code = """
    @app.train()
    def train(msg, context):
        import ctypes
        # A fork that Python knows nothing of, in a process group of its own: it keeps socket and pipes open.
        if ctypes.CDLL(None).fork() == 0:
            os.setpgid(0, 0)
            time.sleep(5)
            os._exit(0)
        os._exit(4)
    """
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)):
        run = fleet.add_run(write_app(tmp_path / "app", code))
        (task,) = fleet.push(run, ["node"])
        found, text = fleet.error(task, timeout=5)
        assert found == 8
        assert "exited with code 4" in text


def test_a_resumed_run_is_worked_for_again(tmp_path, gate, project):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)) as running:
        run = fleet.add_run(project, config=gate.config)
        fleet.push(run, ["node"])
        worker = gate.worker()
        fleet.stop(run)
        eventually(lambda: not exists(worker), what="the worker of the stopped run to be gone")
        (late,) = fleet.push(run, ["node"], kind="evaluate")
        eventually(lambda: fleet.open[late].attempt and not len(running.node._scheduler), what="the task to be dropped")
        assert late not in fleet.results
        fleet.resume(run)
        (task,) = fleet.push(run, ["node"], kind="evaluate")
        fleet.content(task)


def test_a_lost_lease_ends_the_work(tmp_path, gate, project, quick_renewals):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)):
        run = fleet.add_run(project, config=gate.config)
        (task,) = fleet.push(run, ["node"])
        worker = gate.worker()
        eventually(lambda: fleet.calls["renew"] > 1, what="a renewal")
        assert exists(worker)
        fleet.cancel(task)
        eventually(lambda: not exists(worker), what="the worker of the cancelled task to be gone")
        (after,) = fleet.push(run, ["node"], kind="evaluate")
        fleet.content(after)


def test_a_task_that_is_claimed_again_is_not_done_twice(tmp_path, gate, project):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path, slots=2)):
        run = fleet.add_run(project, config=gate.config)
        (task,) = fleet.push(run, ["node"])
        gate.worker()
        fleet.lapse(task)
        eventually(lambda: fleet.open[task].attempt == 2, what="the second claim")
        gate.open()
        assert fleet.content(task).metric_records["m"]["attempt"] == 1
        assert [path.name for path in gate.folder.glob("0-*")] == ["0-1"]


def test_a_task_that_is_claimed_again_while_it_is_handed_in(tmp_path, gate, project):
    fleet = FleetDouble()

    def interfere(_replies) -> None:
        if fleet.calls["submit"] == 0:
            fleet.lapse(task)
            eventually(lambda: fleet.open[task].attempt == 2, what="the second claim")

    fleet.before_submit = interfere
    with supernode(fleet, node_options(tmp_path)):
        run = fleet.add_run(project, config=gate.config)
        (task,) = fleet.push(run, ["node"])
        gate.worker()
        gate.open()
        assert fleet.content(task).metric_records["m"]["attempt"] == 1


def test_a_deadline_ends_a_task(tmp_path, gate, project):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)):
        run = fleet.add_run(project, config=gate.config)
        task, late = (fleet.push(run, ["node"], ttl=ttl)[0] for ttl in (4.0, 0.01))  # time to start a worker
        worker = gate.worker()
        code, text = fleet.error(task)
        assert (code, "deadline" in text) == (3, True)
        assert fleet.error(late)[0] == 3
        eventually(lambda: not exists(worker), what="the late worker to be gone")


def test_a_drain_lets_running_tasks_finish_and_gives_the_others_back(tmp_path, gate, project):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path, nodes=2)) as running:
        run = fleet.add_run(project, config=gate.config)
        first, second = fleet.push(run, ["node-1", "node-2"])
        gate.worker()
        eventually(lambda: fleet.open[second].attempt, what="the second claim")
        running.node.stop()
        eventually(lambda: fleet.released == [second], what="the queued task to be given back")
        assert first not in fleet.results
        fleet.push(run, ["node-2"], kind="evaluate")
        gate.open()
        assert fleet.content(first)
        eventually(lambda: running.exit_code == 0, what="the end")
    assert list(fleet.results) == [first]
    assert not fleet.connected


def test_a_drain_does_not_wait_for_ever(tmp_path, gate, project):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path, drain_seconds=0.1)) as running:
        run = fleet.add_run(project, config=gate.config)
        (task,) = fleet.push(run, ["node"])
        worker = gate.worker()
        running.node.stop()
        eventually(lambda: running.exit_code == 0, timeout=5, what="the end")
        assert fleet.released == [task]
        assert not exists(worker)


def test_a_second_signal_ends_it_at_once(tmp_path, gate, project):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)) as running:
        run = fleet.add_run(project, config=gate.config)
        fleet.push(run, ["node"])
        worker = gate.worker()
        running.node.stop()
        running.node.stop()
        eventually(lambda: running.exit_code, timeout=5, what="the end")
        assert running.exit_code == 128 + signal.SIGTERM
        assert not exists(worker)


def test_a_superseded_supernode_ends(tmp_path, gate, project, quick_renewals):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)) as running:
        run = fleet.add_run(project, config=gate.config)
        fleet.push(run, ["node"])
        worker = gate.worker()
        fleet.take_over("node")
        eventually(lambda: running.exit_code == 1, what="the end of the superseded SuperNode")
        assert not exists(worker)


def test_superseded_nodes_go_and_the_others_stay(tmp_path, gate, project):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path, nodes=2, slots=2)) as running:
        run = fleet.add_run(project, config=gate.config)
        fleet.push(run, ["node-1"])
        worker = gate.worker()
        fleet.take_over("node-1")
        eventually(lambda: not exists(worker), what="the worker of the superseded node to be gone")
        (task,) = fleet.push(run, ["node-2"], kind="evaluate")
        fleet.content(task)
        assert running.exit_code is None


def test_an_outage_is_waited_out(tmp_path, gate, project, caplog):
    caplog.set_level("INFO")
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path, nodes=2)):
        run = fleet.add_run(project, config=gate.config)
        (task,) = fleet.push(run, ["node-1"])
        gate.worker()
        fleet.fail(unreachable=True)
        gate.open()
        beats = fleet.calls["heartbeat"]
        eventually(lambda: fleet.calls["submit"] >= 2, what="a second try to hand in the result")
        eventually(lambda: fleet.calls["heartbeat"] > beats + 1, what="two heartbeats")
        assert task not in fleet.results
        (other,) = fleet.push(run, ["node-2"], kind="evaluate")
        fleet.fail(unreachable=False)
        assert fleet.content(task).metric_records["m"]["attempt"] == 1
        fleet.content(other)
    told = [record.message for record in caplog.records if "reach" in record.message]
    assert len(told) == 2, told


def test_answers_that_get_lost_cost_nothing(tmp_path, gate, project):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)):
        run = fleet.add_run(project, config=gate.config)
        fleet.lose_answers = {"claim"}
        (task,) = fleet.push(run, ["node"])
        eventually(lambda: fleet.open[task].attempt, what="a claim whose answer is lost")
        fleet.lose_answers = set()
        gate.worker()
        fleet.lose_answers = {"submit"}
        gate.open()
        eventually(lambda: task in fleet.results, what="a submission whose answer is lost")
        fleet.lose_answers = set()
        (after,) = fleet.push(run, ["node"], kind="evaluate")
        fleet.content(after)
        assert fleet.content(task).metric_records["m"]["attempt"] == 1


def test_a_superlink_that_is_not_there_yet(tmp_path, project):
    fleet = FleetDouble(unreachable=True)
    with supernode(fleet, node_options(tmp_path), connected=False):
        eventually(lambda: fleet.calls["connect"] > 1, what="a second try to connect")
        fleet.fail(unreachable=False)
        eventually(lambda: fleet.connected, what="the connection")
        (task,) = fleet.push(fleet.add_run(project), ["node"], kind="evaluate")
        fleet.content(task)


def test_a_superlink_that_refuses(tmp_path):
    class Refusing(FleetDouble):
        def connect(self, _process, _nodes):
            raise NotAllowed("this key is not known")

    with pytest.raises(NotAllowed), supernode(Refusing(), node_options(tmp_path)):
        pass


def test_idle_workers_end(tmp_path, project):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path, idle_seconds=0.1)) as running:
        run = fleet.add_run(project)
        (task,) = fleet.push(run, ["node"], kind="evaluate")
        fleet.content(task)
        eventually(lambda: not running.node._pool.runs(), what="the idle worker to be gone")
        (task,) = fleet.push(run, ["node"], kind="evaluate")
        fleet.content(task)


def test_many_runs_share_few_processes(tmp_path, project):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)) as running:
        runs = [fleet.add_run(project) for _ in range(6)]
        for _ in range(2):
            for task in [fleet.push(run, ["node"], kind="evaluate")[0] for run in runs]:
                fleet.content(task)
                living = [worker for worker in running.node._pool if worker.state.name != "ENDING"]
                assert len(living) <= 3


def test_a_spare_worker_is_ready_for_the_next_run(tmp_path, project):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)) as running:
        eventually(running.node._pool.has_blank, what="the spare worker")
        (task,) = fleet.push(fleet.add_run(project), ["node"], kind="evaluate")
        fleet.content(task)
        eventually(running.node._pool.has_blank, what="the next spare worker")


def test_a_result_that_is_refused_stands_alone(tmp_path, project):
    fleet = FleetDouble()

    def refuse(replies) -> None:
        if any(reply.status is ResultStatus.OK and reply.key.node_id == bad for reply in replies):
            raise ValueError("the metrics are no JSON")

    with supernode(fleet, node_options(tmp_path, nodes=5)):
        bad = fleet._nodes["node-3"].hosted.node_id
        fleet.before_submit = refuse
        tasks = fleet.push(fleet.add_run(project), list(fleet.specs), kind="evaluate")
        for index, task in enumerate(tasks):
            if index == 2:
                assert "refused the reply: the metrics are no JSON" in fleet.error(task)[1]
            else:
                fleet.content(task)


# --- with a SuperNode in a process of its own


@pytest.fixture
def process(tmp_path: Path, gate: Gate, project: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A SuperNode that works on a task that waits at the gate."""
    command = [sys.executable, "-m", "tests.node_process", str(tmp_path), str(project), str(gate.folder)]
    node = subprocess.Popen(command, stdout=subprocess.PIPE)
    yield node
    if node.poll() is None:
        node.kill()
    node.communicate()


def test_sigterm_drains(process, gate):
    gate.worker()
    process.send_signal(signal.SIGTERM)
    gate.open()
    output, _ = process.communicate(timeout=10)
    assert process.returncode == 0
    assert output == b"results: 1\n"


def test_two_signals_end_it_at_once(process, gate):
    worker = gate.worker()
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=10)
    assert process.returncode in {128 + signal.SIGINT, 128 + signal.SIGTERM}
    assert output == b"results: 0\n"
    assert not exists(worker)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no parent-death signal")
def test_workers_die_with_a_killed_supernode(process, gate):
    worker = gate.worker()
    process.kill()
    process.wait()
    eventually(lambda: not exists(worker), timeout=5, what="the worker to be gone")
