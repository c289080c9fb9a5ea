"""Runs that are stopped, resumed, forked and run again, on a federation of real processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.flq_command import Flq
from tests.acceptance.make_app import make_app
from tests.waiting import eventually

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

SERVER = """
    import numpy as np
    from flq.apps import ArrayRecord, ServerApp
    from flq.apps.strategy import FedAvg

    app = ServerApp()


    @app.main()
    def main(grid, context):
        strategy = FedAvg(fraction_evaluate=0, min_train_nodes=4, min_available_nodes=4)
        rounds = context.run_config["num-rounds"]
        result = strategy.start(grid, ArrayRecord([np.zeros(20_000)]), num_rounds=rounds)
        grid.save_artifact("model", result.arrays["0"].numpy().tobytes())
"""

CLIENT = """
    import ctypes, os, time
    import numpy as np
    from flq.apps import ArrayRecord, ClientApp, ConfigRecord, Message, MetricRecord, RecordDict

    app = ClientApp()


    @app.train()
    def train(message, context):
        server_round = message.content["config"]["server-round"]
        seen = context.state["seen"]["rounds"] + 1 if "seen" in context.state else 1
        context.state["seen"] = ConfigRecord({"rounds": seen})
        while server_round == context.run_config["nodes"] and not os.path.exists(context.run_config["gate"]):
            work(context)
        weights = message.content["arrays"].to_numpy_ndarrays()
        weights[0] += np.random.standard_normal(weights[0].shape) * seen
        metrics = MetricRecord({"num-examples": context.node_config["partition-id"] + 1})
        return Message(RecordDict({"arrays": ArrayRecord(weights), "metrics": metrics}), reply_to=message)


    def work(context):
        open(os.path.join(os.path.dirname(context.run_config["gate"]), str(os.getpid())), "w").close()
        if context.node_config["partition-id"] % 2:
            time.sleep(60)
        ctypes.CDLL(None).usleep(60_000_000)  # in C: no signal handler of Python runs meanwhile
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """An app whose nodes wait, in the round that `nodes` says, until the file `gate` is there."""
    folder = make_app(tmp_path / "project", server=SERVER, client=CLIENT)
    project = folder / "pyproject.toml"
    (tmp_path / "gate").mkdir()
    project.write_text(project.read_text() + f'gate = "{tmp_path / "gate" / "open"}"\n')
    return folder


def model(flq: Flq, run: str) -> str:
    """The hash of a run's model."""
    (artifact,) = flq.json("show", run)["artifacts"]
    found: str = artifact["hash"]
    return found


def rounds_trained(flq: Flq, run: str) -> dict[int, int]:
    """How many replies each round of a run has got."""
    rows = flq.sql(f"select round, count(*) as n from tasks where run = '{run}' and status = 'ok' group by round")
    return {row["round"]: row["n"] for row in rows}


def run_of(flq: Flq, name: str) -> dict[str, Any]:
    found: dict[str, Any] = flq.json("show", name)["run"]
    return found


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_a_run_whose_clients_compute_and_sleep_is_stopped_with_a_confirmation_of_each_node_and_resumed(
    flq: Flq, app: Path, tmp_path: Path
):
    gate = tmp_path / "gate"
    config = ["-c", "num-rounds=3 nodes=2", "--seed", "5"]
    (gate / "open").touch()
    flq("run", app, *config, "--name", "undisturbed", "--wait")
    (gate / "open").unlink()
    flq("run", app, *config, "--name", "cut")
    slots = min(4, os.cpu_count() or 1)
    eventually(lambda: len(list(gate.iterdir())) >= slots, what="clients at work")
    at_work = [int(path.name) for path in gate.iterdir()]
    (attempt,) = flq.json("show", "cut")["attempts"]
    flq("stop", "cut", "--reason", "to see whether it can be")
    eventually(lambda: all(map(gone, [*at_work, attempt["pid"]])), timeout=10, what="the end of its processes")
    eventually(lambda: run_of(flq, "cut")["outcome"] == "stopped", what="the end of the run")
    confirmed = "select actor from events where run = 'cut' and event = 'stopped on node' order by actor"
    nodes = [f"node-{number}" for number in range(1, 5)]
    eventually(lambda: [row["actor"] for row in flq.sql(confirmed)] == nodes, what="the confirmation of every node")
    assert rounds_trained(flq, "cut") == {1: 4}
    (gate / "open").touch()
    assert flq("resume", "cut", "--wait").strip() == "cut"
    assert rounds_trained(flq, "cut") == {1: 4, 2: 4, 3: 4}
    assert model(flq, "cut") == model(flq, "undisturbed")
    assert "resumed" in [event["event"] for event in flq.json("show", "cut")["events"]]
    flq("verify")


def test_a_fork_trains_the_rounds_behind_its_own_only_and_makes_the_same_model(flq: Flq, app: Path):
    flq(
        "run",
        app,
        "-c",
        "num-rounds=10 nodes=0",
        "--seed",
        "9",
        "--keep-checkpoints",
        "all",
        "--name",
        "whole",
        "--wait",
    )
    assert flq("fork", "whole", "--from-round", "5", "--name", "branch", "--wait").strip() == "branch"
    assert rounds_trained(flq, "branch") == dict.fromkeys(range(6, 11), 4)
    assert model(flq, "branch") == model(flq, "whole")
    (row,) = flq.sql("select forked_from, forked_from_round, rounds_done from runs where run = 'branch'")
    assert row == {"forked_from": "whole", "forked_from_round": 5, "rounds_done": 10}
    assert "whole, behind round 5" in flq("show", "branch")
    flq("fork", "whole", "--from-round", "10", "-c", "num-rounds=12", "--name", "longer", "--wait")
    assert set(rounds_trained(flq, "longer")) == {11, 12}
    flq("rerun", "whole", "--name", "once-more", "--wait")
    assert model(flq, "once-more") == model(flq, "whole")
    assert run_of(flq, "once-more")["rerun_of"] == "whole"
    flq("verify")


def test_what_cannot_be_done_with_a_run_is_said_with_the_way_out(flq: Flq, app: Path):
    flq("run", app, "-c", "num-rounds=5 nodes=0", "--name", "usual", "--wait")
    wrong = flq.json("resume", "usual", code=1)
    assert wrong["code"] == "illegal_transition"
    assert "has completed" in wrong["message"]
    wrong = flq.json("fork", "usual", "--from-round", "1", code=1)
    assert wrong["code"] == "checkpoint_unknown"
    assert "rounds 3, 4, 5" in wrong["message"]
    assert "--keep-checkpoints all" in wrong["hint"]
    wrong = flq.json("fork", "usual", "--from-round", "5", "-c", "num-round=9", code=2)
    assert wrong["code"] == "run_config"
    assert flq.json("rerun", "nobody", code=1)["code"] == "run_unknown"
    assert flq("explain", "usual").strip() == "usual is completed"
    flq("prune", "usual", "--payloads")
    wrong = flq.json("fork", "usual", "--from-round", "5", code=1)
    assert "flq rerun usual" in wrong["hint"]


def test_a_run_ends_at_its_wall_time_limit(flq: Flq, app: Path):
    wrong = flq.json(
        "run", app, "-c", "num-rounds=3 nodes=2", "--wall-time-limit", "3", "--name", "slow", "--wait", code=1
    )
    assert wrong["code"] == "run_failed"
    assert "its wall-time limit of 3 s passed" in wrong["message"]
    wrong = flq.json("resume", "slow", code=1)
    assert "--wall-time-limit" in wrong["hint"]


def test_explain_names_the_nodes_that_work(flq: Flq, app: Path):
    flq("run", app, "-c", "num-rounds=3 nodes=1", "--name", "held")
    eventually(
        lambda: "working" in [cause["cause"] for cause in flq.json("explain", "held")["causes"]], what="clients at work"
    )
    assert "are being worked on" in flq("explain", "held")
    flq("stop", "held")
    eventually(lambda: run_of(flq, "held")["outcome"] == "stopped", what="the end of the run")
