"""The server side: the older loop as a workflow."""

from flwr.common import Context
from flwr.server import Grid, LegacyContext, ServerApp, ServerConfig
from flwr.server.strategy import FedMedian
from flwr.server.workflow import DefaultWorkflow

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    legacy = LegacyContext(
        context=context,
        config=ServerConfig(num_rounds=context.run_config["num-server-rounds"]),
        strategy=FedMedian(min_available_clients=4),
    )
    DefaultWorkflow()(grid, legacy)
    print("LOSSES", legacy.history.losses_distributed)
    print("ARRAYS", [array.numpy().tolist() for array in legacy.state.array_records["parameters"].values()])
