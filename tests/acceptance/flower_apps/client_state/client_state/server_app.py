"""The server side; mixed roots, and relative imports."""

from flwr.common import Context, ParametersRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from .task import zeros

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    strategy = FedAvg(min_available_nodes=4)
    result = strategy.start(grid=grid, initial_arrays=zeros(), num_rounds=3)
    assert isinstance(result.arrays, ParametersRecord)
    print("COUNTED", [result.train_metrics_clientapp[number]["count"] for number in (1, 2, 3)])
