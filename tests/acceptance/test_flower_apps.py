"""Apps that were written for Flower run as they are."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.acceptance.flq_command import Flq

pytestmark = pytest.mark.acceptance

APPS = Path(__file__).parent / "flower_apps"

SAID = {
    # each node moves the model by 0.5 in each of two rounds; three cells
    "message_api": ["ARRAYS [1.0, 1.0, 1.0]", "CENTRAL [0.0, 1.5, 3.0]", "CLIENTS 1.0"],
    # Adagrad with eta 1 and tau 1, one step of 1: m = v = 1, so 1 / (1 + 1)
    "named_arrays": ["NAMES ['layer.bias', 'layer.weight']", "BIAS [0.5, 0.5]"],
    "overridden_strategy": ["ARRAYS [1.5]"],
    # partition 3 adds 3 in each of two rounds
    "own_strategy": ["SUMMARY maximum", "ARRAYS [6.0] 4"],
    "legacy_numpy": ["CENTRAL 0 [0.0, 0.0]", "CENTRAL 1 [0.5, 0.5]", "CENTRAL 2 [1.0, 1.0]"],
    # the median of 0, 1, 2 and 3 is 1.5
    "legacy_workflow": ["LOSSES [(1, 1.5), (2, 3.0)]", "ARRAYS [[3.0]]"],
    # partition n has the numbers 0 to n; the last bin has its right end
    "analytics": ["HISTOGRAM [4, 3, 2, 1]", "ERRORS [False, False, False, True]"],
    "client_state": ["COUNTED [1.0, 2.0, 3.0]"],
    "torch_states": ["WEIGHT [[2.0, 2.0]]"],
}


def test_every_app_of_the_folder_is_run():
    assert SAID.keys() == {path.parent.name for path in APPS.glob("*/pyproject.toml")}


@pytest.mark.parametrize("name", SAID)
def test_an_app_written_for_flower_runs_as_it_is(name: str, flq: Flq, tmp_path: Path):
    if name == "torch_states" and find_spec("torch") is None:
        pytest.skip("torch is not installed")
    folder = tmp_path / name
    shutil.copytree(APPS / name, folder)  # as a user has it: not within another project
    flq("run", folder, "--wait", "--name", name.replace("_", "-"))
    said = [row["text"] for row in flq.sql(f"select text from flq.logs where run = '{name.replace('_', '-')}'")]
    assert [line for line in SAID[name] if line not in said] == [], said


def test_the_rounds_of_a_legacy_app_are_in_the_history(flq: Flq, tmp_path: Path):
    shutil.copytree(APPS / "legacy_numpy", tmp_path / "app")
    flq("run", tmp_path / "app", "--wait", "--name", "history")
    rounds = flq.sql("select round, nodes, metrics from flq.rounds where run = 'history' order by round")
    assert [(row["round"], row["nodes"]) for row in rounds] == [(1, 4), (2, 4)]
    measured = {"loss": 2.0, "cells": 2.0, "eval_loss": 1.0, "eval_accuracy": 0.75}
    assert rounds[1]["metrics"] == pytest.approx(measured)
    (run,) = flq.sql("select rounds_done, rounds_planned from flq.runs where run = 'history'")
    assert run == {"rounds_done": 2, "rounds_planned": 2}


def test_a_name_that_flq_does_not_have_is_said(flq: Flq, tmp_path: Path):
    shutil.copytree(APPS / "message_api", tmp_path / "app")
    server = tmp_path / "app" / "message_api" / "server_app.py"
    server.write_text(server.read_text().replace("import FedAvg", "import FedAvg, FedBest", 1))
    flq("run", tmp_path / "app", "--wait", "--name", "missing", code=1)
    (run,) = [run for run in flq.json("ls") if run["name"] == "missing"]
    assert "has no name 'FedBest'" in run["reason"]
    assert "of flq" in run["reason"]
