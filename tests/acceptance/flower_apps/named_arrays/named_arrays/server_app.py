"""The server side: arrays with names, and FedAdam."""

import numpy as np
from flwr.common import Array, ArrayRecord, Context
from flwr.server import Driver
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAdagrad

app = ServerApp()


@app.main()
def main(grid: Driver, context: Context) -> None:
    initial = ArrayRecord({"layer.weight": Array(np.ones((2, 2))), "layer.bias": Array(np.zeros(2))})
    strategy = FedAdagrad(min_available_nodes=4, fraction_evaluate=0.0, eta=1.0, tau=1.0)
    result = strategy.start(grid, initial, num_rounds=context.run_config["num-server-rounds"])
    print("NAMES", sorted(result.arrays))
    print("BIAS", result.arrays["layer.bias"].numpy().round(6).tolist())
