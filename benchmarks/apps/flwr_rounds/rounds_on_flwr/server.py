"""Federated averaging that notes when each round starts, and writes what it has seen into a file."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class TimedFedAvg(FedAvg):
    """Federated averaging of all nodes."""

    def __init__(self, nodes: int) -> None:
        super().__init__(
            min_train_nodes=nodes,
            min_evaluate_nodes=nodes,
            min_available_nodes=nodes,
            train_metrics_aggr_fn=count,
            evaluate_metrics_aggr_fn=count,
        )
        self.starts: list[float] = []

    def configure_train(self, *arguments: Any, **named: Any) -> Iterable[Message]:
        """A round starts here, and the one before ends."""
        self.starts.append(time.time())
        return super().configure_train(*arguments, **named)


def count(contents: list[RecordDict], weighted_by_key: str) -> MetricRecord:  # noqa: ARG001 - the framework's signature
    """How many replies could be used."""
    return MetricRecord({"replies": len(contents)})


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train as many rounds as the run's configuration says."""
    entered = time.time()
    config = context.run_config
    model = np.random.default_rng(0).standard_normal(int(config["floats"]), dtype=np.float32)
    strategy = TimedFedAvg(int(config["nodes"]))
    result = strategy.start(grid, ArrayRecord([model]), num_rounds=int(config["rounds"]))
    ended = time.time()
    (final,) = result.arrays.to_numpy_ndarrays()
    report = {
        "entered": entered,
        "starts": strategy.starts,
        "ended": ended,
        "train_replies": replies(result.train_metrics_clientapp.values()),
        "evaluate_replies": replies(result.evaluate_metrics_clientapp.values()),
        "model_kept": bool(np.allclose(final, model, atol=1e-3)),
    }
    Path(str(config["report"])).write_text(json.dumps(report), encoding="utf-8")


def replies(rounds: Iterable[MetricRecord]) -> list[Any]:
    """How many replies each round had."""
    return [metrics["replies"] for metrics in rounds]
