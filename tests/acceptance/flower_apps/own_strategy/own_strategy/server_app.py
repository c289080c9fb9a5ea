"""The server side: a strategy written from scratch, which takes the maximum."""

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result, Strategy

app = ServerApp()


class Maximum(Strategy):
    """The largest value that a node has."""

    def configure_train(self, server_round, arrays, config, grid):
        content = RecordDict({"arrays": arrays, "config": config})
        return [
            Message(content, dst_node_id=node_id, message_type=MessageType.TRAIN, group_id=str(server_round))
            for node_id in grid.get_node_ids()
        ]

    def aggregate_train(self, server_round, replies):
        values = [reply.content["arrays"].to_numpy_ndarrays()[0] for reply in replies if reply.has_content()]
        return ArrayRecord([np.max(values, axis=0)]), MetricRecord({"nodes": len(values)})

    def configure_evaluate(self, server_round, arrays, config, grid):
        return []

    def aggregate_evaluate(self, server_round, replies):
        return None

    def summary(self):
        print("SUMMARY maximum")


@app.main()
def main(grid: Grid, context: Context) -> None:
    result: Result = Maximum().start(grid, ArrayRecord([np.zeros(1)]), 2, train_config=ConfigRecord({"lr": 1.0}))
    print("ARRAYS", result.arrays.to_numpy_ndarrays()[0].tolist(), result.train_metrics_clientapp[2]["nodes"])
