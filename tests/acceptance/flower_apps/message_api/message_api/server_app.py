"""The server side: FedAvg, with an evaluation on the server."""

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    rounds: int = context.run_config["num-server-rounds"]
    strategy = FedAvg(fraction_train=1.0, min_available_nodes=4, min_train_nodes=4, min_evaluate_nodes=4)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord([np.zeros(3, dtype=np.float32)]),
        train_config=ConfigRecord({"lr": context.run_config["train.lr"]}),
        num_rounds=rounds,
        evaluate_fn=central,
    )
    print("ARRAYS", result.arrays.to_numpy_ndarrays()[0].tolist())
    print("CENTRAL", [result.evaluate_metrics_serverapp[number]["norm"] for number in range(rounds + 1)])
    print("CLIENTS", result.evaluate_metrics_clientapp[rounds]["seen"])


def central(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    return MetricRecord({"norm": float(np.abs(arrays.to_numpy_ndarrays()[0]).sum())})
