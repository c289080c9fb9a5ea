"""What a SuperNode says of a stopped run: that nothing of it works any more, for each node that had something."""

from __future__ import annotations

import os
from pathlib import Path

from tests.fleet_double import FleetDouble, supernode
from tests.node_app import node_options, write_app
from tests.waiting import eventually

WORKING = """
@app.train()
def train(msg, context):
    folder = Path(context.run_config["folder"])
    (folder / str(os.getpid())).touch()
    {work}

@app.evaluate()
def evaluate(msg, context):
    return Message(RecordDict(), reply_to=msg)
"""

SLEEPING = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    time.sleep(60)"
IN_C = "np.linalg.svd(np.ones((4000, 4000)))"


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def stop_while_working(tmp_path: Path, work: str) -> None:
    """Stop a run that works for two of three nodes; when that is confirmed, its processes are gone."""
    fleet = FleetDouble()
    workers = tmp_path / "workers"
    workers.mkdir()
    with supernode(fleet, node_options(tmp_path, nodes=3, slots=2)):
        project = write_app(tmp_path / "app", WORKING.format(work=work))
        run = fleet.add_run(project, config={"folder": str(workers)})
        fleet.push(run, ["node-1", "node-2", "node-3"])
        eventually(lambda: len(list(workers.iterdir())) == 2, what="two workers")
        pids = [int(path.name) for path in workers.iterdir()]
        fleet.stop(run)
        eventually(lambda: fleet.confirmed, timeout=10, what="the confirmation")
        assert all(map(gone, pids))
        nodes = [node for found, node in fleet.confirmed if found == run]
        assert len(nodes) == 2
        assert len(set(nodes)) == 2
        other = fleet.add_run(project, config={"folder": str(workers)})
        (task,) = fleet.push(other, ["node-1"], kind="evaluate")
        fleet.content(task)


def test_workers_that_sleep_and_ignore_signals_are_gone_when_the_stop_is_confirmed(tmp_path: Path):
    stop_while_working(tmp_path, SLEEPING)


def test_workers_that_compute_in_c_are_gone_when_the_stop_is_confirmed(tmp_path: Path):
    stop_while_working(tmp_path, IN_C)


def test_nodes_whose_workers_were_idle_are_confirmed_too(tmp_path: Path):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)):
        run = fleet.add_run(write_app(tmp_path / "app"))
        (task,) = fleet.push(run, ["node"])
        fleet.result(task)
        fleet.stop(run)
        eventually(lambda: fleet.confirmed, what="the confirmation")
        assert [found for found, _ in fleet.confirmed] == [run]


def test_a_confirmation_whose_answer_is_lost_is_sent_again(tmp_path: Path):
    fleet = FleetDouble()
    fleet.lose_answers.add("confirm_ended")
    with supernode(fleet, node_options(tmp_path)):
        run = fleet.add_run(write_app(tmp_path / "app"))
        (task,) = fleet.push(run, ["node"])
        fleet.result(task)
        fleet.stop(run)
        eventually(lambda: len(fleet.confirmed) > 1, what="another confirmation")
        fleet.lose_answers.clear()
        assert len(set(fleet.confirmed)) == 1
