"""What leads a run: federated averaging, measured on the images that no node has seen."""

from __future__ import annotations

import io

import numpy as np

from digits import model
from digits.data import held_out
from flq.apps import ArrayRecord, Context, Grid, MetricRecord, ServerApp
from flq.apps.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, keep the model as `model.npz`, and print how many of the held-out images it recognises."""
    config = context.run_config
    seed = int(config["seed"])
    images, labels = held_out(seed)

    def evaluate(_server_round: int, arrays: ArrayRecord) -> MetricRecord:
        loss, accuracy = model.measure(arrays.to_numpy_ndarrays(), images, labels)
        return MetricRecord({"loss": loss, "accuracy": accuracy})

    strategy = FedAvg(fraction_train=float(config["fraction-train"]))
    rounds = int(config["num-rounds"])
    result = strategy.start(
        grid,
        ArrayRecord(model.initial(int(config["hidden"]), seed)),
        num_rounds=rounds,
        evaluate_fn=evaluate,
    )

    weights = result.arrays.to_numpy_ndarrays()
    file = io.BytesIO()
    np.savez(file, w1=weights[0], b1=weights[1], w2=weights[2], b2=weights[3])
    grid.save_artifact("model.npz", file.getvalue())
    print(f"accuracy={result.evaluate_metrics_serverapp[rounds]['accuracy']:.4f}")
