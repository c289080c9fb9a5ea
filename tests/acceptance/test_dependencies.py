"""Nodes that differ: one has an app's dependency and one has not, one has its data and one has not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.flq_command import Flq
from tests.acceptance.make_app import CLIENT, make_app
from tests.integration.local_home import temporary_home
from tests.waiting import eventually
from tests.wheels import installed, pip_settings, wheel

pytestmark = pytest.mark.acceptance

SERVER = """
    import numpy as np
    from flq.apps import ArrayRecord, ServerApp
    from flq.apps.strategy import FedAvg
    from flq.errors import StrategyError

    app = ServerApp()


    class AtLeast(FedAvg):
        def __init__(self, minimum):
            super().__init__(fraction_evaluate=0.0, min_train_nodes=minimum, min_available_nodes=minimum)
            self.minimum = minimum

        def aggregate_train(self, server_round, replies):
            replies = list(replies)
            good = sum(not reply.has_error() for reply in replies)
            if good < self.minimum:
                raise StrategyError(f"{good} of {self.minimum} nodes have trained")
            return super().aggregate_train(server_round, replies)


    @app.main()
    def main(grid, context):
        strategy = AtLeast(context.run_config["nodes"])
        result = strategy.start(grid, ArrayRecord([np.zeros(4)]), num_rounds=context.run_config["num-rounds"])
        print("sum", float(result.arrays["0"].numpy().sum()))
"""


def app(folder: Path, *dependencies: str, client: str = CLIENT) -> Path:
    """An app that needs `dependencies` and as many good replies as its configuration says."""
    project = make_app(folder, server=SERVER, client=client) / "pyproject.toml"
    project.write_text(project.read_text().replace('["numpy"]', str(list(dependencies))))
    return folder


@contextmanager
def supernodes(flq: Flq, *started: tuple[Flq, Sequence[str]], nodes: Sequence[str]) -> Iterator[None]:
    """SuperNodes as they are started by hand: the command of each, and its arguments. They host `nodes`."""
    processes = [command.start("supernode", *arguments) for command, arguments in started]
    try:
        eventually(
            lambda: set(nodes) <= online(flq) or any(process.poll() is not None for process in processes),
            what="the nodes to be online",
        )
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            out, err = process.communicate(timeout=30)
            assert process.returncode == 0, out + err


def online(flq: Flq) -> set[str]:
    return {node["name"] for node in flq.json("nodes", "--online")}


def errors(flq: Flq, run: str) -> dict[str, str]:
    """The error of each node of a run that has one."""
    rows = flq.sql(f"select node, error_text from flq.tasks where run = '{run}' and status = 'error'")
    return {row["node"]: row["error_text"] for row in rows}


def outcome(flq: Flq, run: str) -> tuple[str, str]:
    (row,) = flq.sql(f"select outcome, reason from flq.runs where run = '{run}'")
    return row["outcome"], row["reason"]


@pytest.fixture(scope="module")
def packages() -> Iterator[Path]:
    """A folder with the package `wardtools`."""
    with temporary_home(mode=0o755) as home:
        yield installed(home.parent / "packages", "wardtools", "1.2")


@pytest.fixture(scope="module")
def flq(packages: Path) -> Iterator[Flq]:
    """The command, where `wardtools` is installed, with a federation of one node that is up."""
    with temporary_home(prepared=True) as home:
        command = Flq(home, {"PYTHONPATH": str(packages)})
        command("up", "--nodes", "1")
        yield command


def test_a_node_with_a_dependency_and_one_without(flq: Flq, tmp_path: Path):
    folder = app(tmp_path, "numpy", "wardtools>=1")
    without = Flq(flq.home)
    both = (flq, ["--name", "with", "--slots", "1"]), (without, ["--name", "without", "--slots", "1"])
    with supernodes(flq, *both, nodes=["with", "without"]):
        flq("run", folder, "--wait", "--on", "with,without", "-c", "nodes=1", "--name", "one-is-enough")
        assert outcome(flq, "one-is-enough")[0] == "completed"
        assert "sum 8.0" in flq("logs", "one-is-enough")
        (error,) = errors(flq, "one-is-enough").values()
        assert "the app needs wardtools>=1, which node without does not have" in error
        assert "-m pip install 'wardtools>=1'" in error
        flq("run", folder, "--wait", "--on", "with,without", "-c", "nodes=2", "--name", "both-are-needed", code=1)
        assert outcome(flq, "both-are-needed") == (
            "failed",
            "ServerApp raised StrategyError: 1 of 2 nodes have trained",
        )
        assert "which node without does not have" in flq("logs", "both-are-needed")


def test_a_dependency_that_the_superexec_lacks(flq: Flq, tmp_path: Path):
    flq("run", app(tmp_path, "wardtools>=2"), "--wait", "--name", "too-new", code=1)
    reason = outcome(flq, "too-new")[1]
    assert "the app needs wardtools>=2 (1.2 is installed), which the SuperExec on " in reason
    assert "-m pip install 'wardtools>=2'" in flq("show", "too-new")


def test_a_requirement_that_cannot_be_read_is_refused_at_once(flq: Flq, tmp_path: Path):
    found = flq.json("run", app(tmp_path, "wardtools >>= 2"), "--name", "never", code=2)
    assert found["code"] == "project"
    assert "'wardtools >>= 2', which is no requirement" in found["message"]
    assert not flq.sql("select run from flq.runs where run = 'never'")


READS = CLIENT.replace(
    'print("training',
    'print("rows", len(open(context.node_config["data"]).readlines()))\n        print("training',
)


def test_each_node_reads_its_own_data(flq: Flq, tmp_path: Path):
    (tmp_path / "a.csv").write_text("1\n2\n")
    (tmp_path / "b.csv").write_text("1\n2\n3\n")
    config = tmp_path / "wards.toml"
    config.write_text(
        f"""
        [ward-1]
        data = "{tmp_path}/a.csv"
        [ward-2]
        data = "{tmp_path}/b.csv"
        """
    )
    folder = app(tmp_path / "app", client=READS)
    hosted = ["--name", "ward", "--nodes", "2", "--node-config-file", str(config), "--label", "site=berlin"]
    with supernodes(flq, (flq, hosted), nodes=["ward-1", "ward-2"]):
        on_wards: list[Any] = ["run", folder, "--wait", "--on", "site=berlin", "-c", "num-rounds=1"]
        flq(*on_wards, "--name", "complete")
        rows = flq.sql("select source, text from flq.logs where run = 'complete' and text like 'rows %'")
        assert {row["source"]: row["text"] for row in rows} == {"ward-1": "rows 2", "ward-2": "rows 3"}
        (tmp_path / "b.csv").unlink()
        flq(*on_wards, "-c", "nodes=1", "--name", "partial")
        assert outcome(flq, "partial")[0] == "completed"
        assert "sum 4.0" in flq("logs", "partial")
        found = errors(flq, "partial")
        assert list(found) == ["ward-2"]
        assert f"No such file or directory: '{tmp_path}/b.csv'" in found["ward-2"]
        assert "tiny/client.py" in found["ward-2"]


@pytest.fixture
def wheels() -> Iterator[Path]:
    with temporary_home(mode=0o755) as home:
        folder = home.parent / "wheels"
        wheel(folder, "wardtools", "2.0", requires=["numpy"])
        yield folder


NEEDS = CLIENT.replace('print("training', 'import wardtools\n        print(wardtools.version)\n        print("training')


def test_a_federation_that_installs_what_apps_need(prepared: Flq, wheels: Path, tmp_path: Path):
    flq = Flq(prepared.home, pip_settings(wheels))
    flq("up", "--nodes", "2", "--install-deps")
    folder = app(tmp_path, "wardtools>=2", client=NEEDS)
    flq("run", folder, "--wait", "--name", "first")
    assert len(list((flq.home / "envs").iterdir())) == 1  # SuperExec and SuperNode share it
    said = flq.sql("select source, text from flq.logs where run = 'first'")
    assert [row["source"] for row in said if "installing dependencies" in row["text"]] == ["serverapp"]
    assert {row["source"] for row in said if row["text"] == "2.0"} == {"node-1", "node-2"}
    # a grown federation goes on to install, and what is there is enough without pip
    shutil.rmtree(wheels)
    flq("run", folder, "--wait", "--nodes", "3", "--name", "grown")
    assert "running" in flq.json("up", "--install-deps", code=1)["message"]


def test_a_federation_of_one_node_keeps_it_when_it_grows(prepared: Flq, tmp_path: Path):
    counts = CLIENT.replace(
        'print("training',
        'state = context.state.metric_records.setdefault("seen", MetricRecord({"n": 0}))\n'
        '        state["n"] += 1\n        print("training',
    )
    prepared("up", "--nodes", "1")
    assert online(prepared) == {"node-1"}
    prepared("run", app(tmp_path, client=counts), "--wait", "-c", "nodes=1 num-rounds=1")
    (state,) = (prepared.home / "nodes").glob("*/state/*/node-1")
    prepared("up", "--nodes", "2")
    assert online(prepared) == {"node-1", "node-2"}
    assert state.is_relative_to(prepared.home / "nodes" / "node")  # which is theirs, and stays
