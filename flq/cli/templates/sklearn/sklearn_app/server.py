"""The ServerApp: what leads a run."""

from __future__ import annotations

import io

import numpy as np
from flq.apps import ArrayRecord, Context, Grid, MetricRecord, ServerApp
from flq.apps.strategy import FedAvg

from sklearn_app import data, model

# A ServerApp leads a run. flq runs it once for each `flq run`, in a process of its own.
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train the model, keep it, and print how good it has become."""
    config = context.run_config
    images, labels = data.held_out(seed=int(config["seed"]))

    def evaluate(_server_round: int, arrays: ArrayRecord) -> MetricRecord:
        # Called with the model after each round, and as round 0 with the initial one. These numbers are the history
        # of the run: flq show RUN, or: flq sql "select round, metrics from rounds"
        loss, accuracy = model.measure(arrays.to_numpy_ndarrays(), images, labels)
        return MetricRecord({"loss": loss, "accuracy": accuracy})

    # The grid is the way to the nodes. The strategy sends each of them a "train" message with the model, makes a new
    # model of their replies (FedAvg: the mean, weighted by "num-examples"), lets them evaluate it, and begins again.
    # It takes two nodes at least, unless it is told otherwise: FedAvg(min_train_nodes=..., min_available_nodes=...)
    rounds = int(config["num-rounds"])
    strategy = FedAvg(fraction_train=float(config["fraction-train"]))
    result = strategy.start(grid, ArrayRecord(model.initial()), num_rounds=rounds, evaluate_fn=evaluate)

    # An artifact is a file that the run leaves behind: flq pull RUN
    coef, intercept = result.arrays.to_numpy_ndarrays()
    file = io.BytesIO()
    np.savez(file, coef=coef, intercept=intercept)
    grid.save_artifact("model.npz", file.getvalue())

    print(f"accuracy={result.evaluate_metrics_serverapp[rounds]['accuracy']:.4f}")
