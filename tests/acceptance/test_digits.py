"""README's first command: ten nodes, ten rounds, real data, and what is left in the history."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.acceptance.flq_command import Flq

pytestmark = pytest.mark.acceptance

DIGITS = Path(__file__).parents[2] / "examples" / "digits"


def test_the_main_job(cold: Flq, tmp_path: Path):
    process = cold.start("run", DIGITS, "--nodes", "10", "--run-config", "num-rounds=10", "--stream")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    key, _, accuracy = out.splitlines()[-1].partition("=")
    assert key == "accuracy"
    assert float(accuracy) >= 0.93

    (run,) = cold.json("ls")
    assert (run["status"], run["outcome"], run["rounds_done"]) == ("finished", "completed", 10)
    rounds = cold.sql("select round, nodes, duration, metrics from flq.rounds order by round")
    assert [row["round"] for row in rounds] == list(range(1, 11))
    assert all(row["nodes"] == 10 and row["duration"] > 0 for row in rounds)
    assert all({"loss", "accuracy"} <= row["metrics"].keys() for row in rounds)
    assert f"{rounds[-1]['metrics']['accuracy']:.4f}" == accuracy

    steps = cold.sql(
        "select kind, round, count(*) as n, count(distinct node) as nodes from flq.tasks group by kind, round"
    )
    assert len(steps) == 20
    assert all((row["n"], row["nodes"]) == (10, 10) for row in steps)
    sources = {row["source"] for row in cold.sql("select distinct source from flq.logs")}
    assert sources == {"serverapp", "superexec", *(f"node-{number}" for number in range(1, 11))}

    cold("pull", run["name"], "--output", tmp_path)
    with np.load(tmp_path / "model.npz") as model:
        assert sum(model[name].size for name in model.files) == 64 * 64 + 64 + 64 * 10 + 10
    assert cold.json("status")["state"] == "up"
