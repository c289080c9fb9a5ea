"""The ServerApp: what leads a run."""

from __future__ import annotations

import io

import torch
from flq.apps import ArrayRecord, Context, Grid, MetricRecord, ServerApp
from flq.apps.strategy import FedAvg

from torch_app import data, model

# A ServerApp leads a run. flq runs it once for each `flq run`, in a process of its own.
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train the model, keep it, and print how good it has become."""
    config = context.run_config
    torch.manual_seed(int(config["seed"]))
    network = model.network(hidden=int(config["hidden"]))
    examples = data.held_out(seed=int(config["seed"]))

    def evaluate(_server_round: int, arrays: ArrayRecord) -> MetricRecord:
        # Called with the model after each round, and as round 0 with the initial one. These numbers are the history
        # of the run: flq show RUN, or: flq sql "select round, metrics from rounds"
        network.load_state_dict(arrays.to_torch_state_dict())
        loss, accuracy = model.measure(network, examples)
        return MetricRecord({"loss": loss, "accuracy": accuracy})

    # The grid is the way to the nodes. The strategy sends each of them a "train" message with the model, makes a new
    # model of their replies (FedAvg: the mean, weighted by "num-examples"), lets them evaluate it, and begins again.
    # It takes two nodes at least, unless it is told otherwise: FedAvg(min_train_nodes=..., min_available_nodes=...)
    rounds = int(config["num-rounds"])
    strategy = FedAvg(fraction_train=float(config["fraction-train"]))
    result = strategy.start(grid, ArrayRecord(network.state_dict()), num_rounds=rounds, evaluate_fn=evaluate)

    # An artifact is a file that the run leaves behind: flq pull RUN
    file = io.BytesIO()
    torch.save(result.arrays.to_torch_state_dict(), file)
    grid.save_artifact("model.pt", file.getvalue())

    print(f"accuracy={result.evaluate_metrics_serverapp[rounds]['accuracy']:.4f}")
