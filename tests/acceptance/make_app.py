"""Small apps of tests, written into a folder as a user would write them."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

SERVER = """
    import numpy as np
    from flq.apps import ArrayRecord, Context, Grid, ServerApp
    from flq.apps.strategy import FedAvg

    app = ServerApp()


    @app.main()
    def main(grid: Grid, context: Context) -> None:
        rounds = context.run_config["num-rounds"]
        nodes = context.run_config["nodes"]
        strategy = FedAvg(min_train_nodes=nodes, min_evaluate_nodes=nodes, min_available_nodes=nodes)
        result = strategy.start(grid, ArrayRecord([np.zeros(4)]), num_rounds=rounds)
        print("sum", float(result.arrays["0"].numpy().sum()))
"""

CLIENT = """
    import logging
    from flq.apps import ArrayRecord, ClientApp, MetricRecord, RecordDict, Message

    app = ClientApp()


    @app.train()
    def train(message, context):
        print("training on partition", context.node_config["partition-id"])
        weights = message.content["arrays"].to_numpy_ndarrays()
        weights[0] += 1
        metrics = MetricRecord({"num-examples": 1, "loss": 0.5})
        return Message(RecordDict({"arrays": ArrayRecord(weights), "metrics": metrics}), reply_to=message)


    @app.evaluate()
    def evaluate(message, context):
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "accuracy": 0.75})}), reply_to=message)
"""


def make_app(folder: Path, name: str = "tiny", *, server: str = SERVER, client: str = CLIENT) -> Path:
    """Write a project with one package; returns its folder."""
    package = folder / name
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "server.py").write_text(dedent(server))
    (package / "client.py").write_text(dedent(client))
    (folder / "pyproject.toml").write_text(
        dedent(f"""
            [project]
            name = "{name}"
            version = "1.0.0"
            dependencies = ["numpy"]

            [tool.flq.app]
            serverapp = "{name}.server:app"
            clientapp = "{name}.client:app"

            [tool.flq.app.config]
            num-rounds = 2
            nodes = 2
        """)
    )
    return folder
