"""Runs strategies of Flower (flwr) over recorded clients, for `test_strategy_flwr.py`: in the peers' environment.

    python -P flwr_strategies.py CASE.npz OUT.npz

`CASE` has `start_<array>`, and for each round and node `step_<round>_<node>_<array>` that the node adds to the model
that it got; `weights`, `losses`, and as JSON `spec`: name and options of the strategy. `OUT` gets
`model_<round>_<array>`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np


class Nodes:
    """A Grid with nodes online."""

    def __init__(self, count: int) -> None:
        self.count = count

    def get_node_ids(self) -> list[int]:
        return list(range(2, 2 + self.count))


def play(api: Any, strategies: Any, case: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The models after each round, by `api` (flwr.app or flq.apps) and its strategies."""
    spec = json.loads(str(case["spec"]))
    strategy = make(strategies, spec)
    keys = [name.removeprefix("start_") for name in case if name.startswith("start_")]
    model = api.ArrayRecord({key: api.Array(case[f"start_{key}"]) for key in keys})
    found: dict[str, np.ndarray] = {}
    for server_round in range(1, spec["rounds"] + 1):
        config = api.ConfigRecord({"lr": 0.1})
        messages = list(strategy.configure_train(server_round, model, config, Nodes(spec["nodes"])))
        messages.sort(key=lambda message: message.metadata.dst_node_id)
        replies = [answer(api, message, case, server_round, keys) for message in messages]
        new, _ = strategy.aggregate_train(server_round, replies)
        model = new if new is not None else model
        found |= {f"model_{server_round}_{key}": model[key].numpy() for key in keys}
    return found


def make(strategies: Any, spec: Mapping[str, Any]) -> Any:
    inner = getattr(strategies, spec["name"])(**spec["options"])
    if "wrapper" not in spec:
        return inner
    return getattr(strategies, spec["wrapper"])(inner, **spec["wrapper_options"])


def answer(api: Any, message: Any, case: Mapping[str, Any], server_round: int, keys: Iterable[str]) -> Any:
    node = message.metadata.dst_node_id - 2
    got = message.content["arrays"]
    arrays = api.ArrayRecord(
        {key: api.Array(np.asarray(got[key].numpy() + case[f"step_{server_round}_{node}_{key}"])) for key in keys}
    )
    metrics = {"num-examples": int(case["weights"][node]), "train_loss": float(case["losses"][node])}
    metrics |= {"norm_bit": int(case["bits"][node])} if "bits" in case else {}
    return api.Message(api.RecordDict({"arrays": arrays, "metrics": api.MetricRecord(metrics)}), reply_to=message)


def main(source: str, target: str) -> None:
    """Play all cases of a file."""
    import flwr.app  # type: ignore[import-not-found]
    import flwr.serverapp.strategy  # type: ignore[import-not-found]
    from flwr.supercore.task_identity import TaskIdentity  # type: ignore[import-not-found]

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1  # messages are made in a run only
    with np.load(source) as cases:
        names = sorted({name.partition("/")[0] for name in cases})
        found: dict[str, Any] = {}
        for name in names:
            prefix = f"{name}/"
            case = {key.removeprefix(prefix): cases[key] for key in cases if key.startswith(prefix)}
            played = play(flwr.app, flwr.serverapp.strategy, case)
            found |= {f"{name}/{key}": array for key, array in played.items()}
    np.savez(target, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
