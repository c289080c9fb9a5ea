"""`run_simulation`: apps that are objects of a script."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from tests.acceptance.flq_command import PATIENCE, Flq

pytestmark = pytest.mark.acceptance

SCRIPT = """
    import numpy as np
    from flq.apps import ArrayRecord, ClientApp, Context, Grid, Message, MetricRecord, RecordDict, ServerApp
    from flq.apps.strategy import FedAvg
    from flq.local.simulation import run_simulation

    from numbers_of import step

    server = ServerApp()
    client = ClientApp()


    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=3)
        result = strategy.start(grid, ArrayRecord([np.zeros(1)]), num_rounds=2)
        print("NODES", len(list(grid.get_node_ids())), "ARRAYS", result.arrays["0"].numpy().tolist())


    @client.train()
    def train(message: Message, context: Context) -> Message:
        moved = [array + step() for array in message.content["arrays"].to_numpy_ndarrays()]
        reply = RecordDict({"arrays": ArrayRecord(moved), "metrics": MetricRecord({"num-examples": 1})})
        return Message(reply, reply_to=message)


    if __name__ == "__main__":
        run_simulation(server, client, 3, backend_name="ray")
"""


def execute(flq: Flq, script: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(script)],
        env=flq.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def written(folder: Path, script: str) -> Path:
    (folder / "numbers_of.py").write_text("def step():\n    return 2.0\n")
    (folder / "simulate.py").write_text(dedent(script))
    return folder / "simulate.py"


def test_a_script_runs_its_apps_on_as_many_nodes_as_it_says(flq: Flq, tmp_path: Path):
    done = execute(flq, written(tmp_path, SCRIPT))
    assert done.returncode == 0, done.stderr
    assert "NODES 3 ARRAYS [4.0]" in done.stdout
    assert flq.json("ls")[0]["app"] == "simulation"


def test_a_simulation_that_fails_is_an_error_of_the_script(flq: Flq, tmp_path: Path):
    done = execute(flq, written(tmp_path, SCRIPT.replace("strategy = FedAvg", "1 / 0; strategy = FedAvg")))
    assert done.returncode == 1
    assert "has failed: ServerApp raised ZeroDivisionError" in done.stderr


def test_apps_without_a_global_name_are_refused(flq: Flq, tmp_path: Path):
    done = execute(
        flq, written(tmp_path, SCRIPT.replace("run_simulation(server, client", "run_simulation(ServerApp(), client"))
    )
    assert done.returncode == 1
    assert "server_app is no global name of a script or module" in done.stderr


def test_a_simulation_has_nodes(flq: Flq, tmp_path: Path):
    done = execute(flq, written(tmp_path, SCRIPT.replace("client, 3,", "client, 0,")))
    assert "num_supernodes is 0" in done.stderr


def test_a_call_that_its_own_processes_would_repeat_is_refused(flq: Flq, tmp_path: Path):
    done = execute(flq, written(tmp_path, SCRIPT.replace('if __name__ == "__main__":', "if True:")))
    assert done.returncode == 1
    assert "run_simulation is called while the processes of its run import the script" in done.stderr + done.stdout
