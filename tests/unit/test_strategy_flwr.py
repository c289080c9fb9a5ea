"""The same clients through the strategies of Flower (flwr) and ours: the same models, round by round."""

from __future__ import annotations

import inspect
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flq.apps
import flq.apps.strategy
from flq.apps.strategy.options import RoundOptions
from tests.unit import flwr_strategies
from tests.unit.strategy_replies import xgboost_model

PYTHON = Path(__file__).parents[2] / ".venv-peers" / "bin" / "python"
ROUNDS, NODES = 5, 11

CASES: dict[str, dict[str, Any]] = {
    "FedAvg": {},
    "FedAvgM": {"server_learning_rate": 0.7, "server_momentum": 0.9},
    "FedAvgM-plain": {},
    "FedProx": {"proximal_mu": 0.2},
    "FedMedian": {},
    "FedTrimmedAvg": {"beta": 0.3},
    "FedAdagrad": {},
    "FedAdam": {},
    "FedAdam-other": {"eta": 0.5, "beta_1": 0.5, "beta_2": 0.7, "tau": 0.1},
    "FedYogi": {},
    "FedYogi-other": {"eta": 0.5, "beta_1": 0.5, "beta_2": 0.7, "tau": 0.1},
    "QFedAvg": {"client_learning_rate": 0.1, "q": 0.3},
    "Krum": {"num_malicious_nodes": 2},
    "MultiKrum": {"num_malicious_nodes": 2, "num_nodes_to_select": 4},
    "Bulyan": {"num_malicious_nodes": 2},
    "FedXgbCyclic": {},
}
FIXED = {"noise_multiplier": 0.0, "clipping_norm": 1.5, "num_sampled_clients": NODES}
ADAPTIVE = {"noise_multiplier": 0.0, "num_sampled_clients": NODES, "initial_clipping_norm": 1.5}
WRAPPED: dict[str, dict[str, Any]] = {
    "DifferentialPrivacyServerSideFixedClipping": FIXED,
    "DifferentialPrivacyClientSideFixedClipping": FIXED,
    "DifferentialPrivacyServerSideAdaptiveClipping": ADAPTIVE,
    "DifferentialPrivacyClientSideAdaptiveClipping": ADAPTIVE,
}
SHAPES: dict[str, tuple[int, ...]] = {"conv.weight": (3, 2, 4), "fc.weight": (40, 7), "fc.bias": (7,)}


def case(name: str, options: dict[str, Any]) -> dict[str, Any]:
    rng = np.random.default_rng(sum(map(ord, name)))
    made: dict[str, Any] = {f"start_{key}": rng.normal(size=shape).astype(np.float32) for key, shape in SHAPES.items()}
    for server_round in range(1, ROUNDS + 1):
        for node in range(NODES):
            for key, shape in SHAPES.items():
                step = rng.normal(size=shape, scale=0.05 * (1 + node % 4))
                made[f"step_{server_round}_{node}_{key}"] = step.astype(np.float32)
    made |= {"weights": rng.integers(1, 500, NODES), "losses": rng.uniform(0.1, 3, NODES)}
    if name == "FedXgbCyclic":  # whose turn it is depends on how nodes are numbered: let all do the same
        for key in [key for key in made if key.startswith("step_")]:
            _, number, _, array = key.split("_", 3)
            made[key] = made[f"step_{number}_0_{array}"]
    spec = {"name": name.partition("-")[0], "options": options, "rounds": ROUNDS, "nodes": NODES}
    return {**made, "spec": json.dumps(spec)}


def cases() -> dict[str, dict[str, Any]]:
    made = {name: case(name, options) for name, options in CASES.items()}
    for wrapper, options in WRAPPED.items():
        wrapped = case("FedAvg", {})
        rounds = 1 if "Adaptive" in wrapper else ROUNDS  # the norm of the next round moves the other way round here
        spec = {**json.loads(wrapped["spec"]), "wrapper": wrapper, "wrapper_options": options, "rounds": rounds}
        made[wrapper] = {**wrapped, "spec": json.dumps(spec), "bits": np.arange(NODES) % 2}
    return made


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    if not PYTHON.exists():
        pytest.skip("Flower (flwr) is not installed: `make peers`")
    folder = tmp_path_factory.mktemp("flwr")
    flat = {f"{name}/{key}": array for name, made in cases().items() for key, array in made.items()}
    np.savez(folder / "cases.npz", **flat)
    script = Path(flwr_strategies.__file__)
    done = subprocess.run(
        [PYTHON, "-P", script, folder / "cases.npz", folder / "found.npz"],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
        env={"FLWR_TELEMETRY_ENABLED": "0", "HOME": str(folder), "FLWR_HOME": str(folder)},
    )
    assert done.returncode == 0, done.stderr
    with np.load(folder / "found.npz") as found:
        return dict(found)


@pytest.mark.parametrize("name", [*CASES, *WRAPPED])
def test_the_models_are_the_same(name: str, theirs: dict[str, np.ndarray]) -> None:
    ours = flwr_strategies.play(flq.apps, flq.apps.strategy, cases()[name])
    assert ours
    for key, array in ours.items():
        other = theirs[f"{name}/{key}"]
        assert (array.dtype.name, array.shape) == (
            "float32",
            other.shape,
        )  # FedAdam and QFedAvg of Flower make it float64
        scale = np.abs(other).max()
        assert np.abs(array - other).max() <= 1e-5 * scale, key


def test_the_models_move(theirs: dict[str, np.ndarray]) -> None:
    for name in CASES:
        moved = theirs[f"{name}/model_{ROUNDS}_fc.bias"] - theirs[f"{name}/model_1_fc.bias"]
        assert np.abs(moved).max() > 1e-3


SIGNATURES = """
import inspect, json
import flwr.serverapp.strategy as strategies
found = {}
for name in strategies.__all__:
    parameters = inspect.signature(getattr(strategies, name)).parameters.values()
    found[name] = [[p.name, str(p.kind), None if p.default is p.empty else repr(p.default)] for p in parameters]
print(json.dumps(found))
"""


def test_the_constructors_are_the_same() -> None:
    if not PYTHON.exists():
        pytest.skip("Flower (flwr) is not installed: `make peers`")
    done = subprocess.run([PYTHON, "-c", SIGNATURES], capture_output=True, text=True, check=True, timeout=110)
    theirs = json.loads(done.stdout)
    assert len(theirs) > len(WRAPPED)
    for name in sorted(theirs.keys() - {"Strategy", "Result"}):
        ours = [
            [
                parameter.name,
                str(parameter.kind),
                None if parameter.default is parameter.empty else repr(parameter.default),
            ]
            for parameter in inspect.signature(getattr(flq.apps.strategy, name)).parameters.values()
            if parameter.name not in {*RoundOptions.__annotations__, "options"}
        ]
        assert ours == theirs[name], name


BAGGING = """
import json, sys
from flwr.serverapp.strategy.strategy_utils import aggregate_bagging
models = [bytes(model, "utf-8") for model in json.load(sys.stdin)]
forest = models[0]
for model in models[1:]:
    forest = aggregate_bagging(forest, model)
print(forest.decode())
"""


@pytest.mark.parametrize("first", ["", "trees"])
def test_forests_are_the_same(first: str) -> None:
    if not PYTHON.exists():
        pytest.skip("Flower (flwr) is not installed: `make peers`")
    start = xgboost_model([{"leaf": [0.1]}, {"leaf": [0.2]}], parallel=2).tobytes() if first else b""
    grown = [xgboost_model([{"leaf": [n]}, {"leaf": [-n]}], parallel=2).tobytes() for n in (1.5, 2.5, 3.5)]
    forest = flq.apps.strategy.xgboost.Forest(start)
    for model in grown:
        forest.add({"0": np.frombuffer(model, np.uint8)}, 1)
    done = subprocess.run(
        [PYTHON, "-c", BAGGING],
        input=json.dumps([model.decode() for model in (start, *grown)]),
        capture_output=True,
        text=True,
        check=True,
        timeout=110,
    )
    assert json.loads(forest.finish()["0"].numpy().tobytes()) == json.loads(done.stdout)
