"""The ClientApp: what happens on a node, next to its data."""

from __future__ import annotations

import numpy as np
from flq.apps import ArrayRecord, ClientApp, Context, Message, MetricRecord, RecordDict

from numpy_app import data, model

# A ClientApp answers messages. flq runs it on every node, in a process of its own, whenever the server sends one.
app = ClientApp()


def my_data(context: Context) -> tuple[data.Points, data.Labels]:
    """The data of the node that this runs on."""
    # context.node_config says what is special about this node. Every node has a "partition-id" (0, 1, 2, ...) and
    # "num-partitions". Nodes of your own get more with: flq supernode --node-config 'path="/data/ward-a"'
    partition_id = int(context.node_config["partition-id"])
    return data.partition(partition_id, seed=int(context.run_config["seed"]))


# A message has a type. This function answers those of type "train".
@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the model that the server has sent, on this node's data, and send it back."""
    points, labels = my_data(context)

    # The content of a message is a dictionary of records. An ArrayRecord holds arrays, a MetricRecord holds numbers,
    # a ConfigRecord holds settings. FedAvg calls the model "arrays" and its settings for this round "config".
    weights = message.content["arrays"].to_numpy_ndarrays()
    server_round = message.content["config"]["server-round"]

    # context.run_config is the same on all nodes: [tool.flq.app.config] of pyproject.toml, as changed by --run-config.
    config = context.run_config
    model.train(
        weights,
        points,
        labels,
        learning_rate=float(config["learning-rate"]),
        epochs=int(config["local-epochs"]),
        batch_size=int(config["batch-size"]),
        # A round may have to be trained again, after a crash: the same seed makes it the same training.
        rng=np.random.default_rng([int(config["seed"]), int(context.node_config["partition-id"]), server_round]),
    )
    loss, accuracy = model.measure(weights, points, labels)
    print(f"round {server_round}: trained on {len(labels)} examples")  # see: flq logs RUN

    # FedAvg takes one ArrayRecord and one MetricRecord, and counts each node by its "num-examples".
    metrics = MetricRecord({"num-examples": len(labels), "train_loss": loss, "train_accuracy": accuracy})
    return Message(RecordDict({"arrays": ArrayRecord(weights), "metrics": metrics}), reply_to=message)


# This one answers those of type "evaluate": only the numbers go back.
@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure the model that the server has sent on this node's data."""
    points, labels = my_data(context)
    loss, accuracy = model.measure(message.content["arrays"].to_numpy_ndarrays(), points, labels)
    metrics = MetricRecord({"num-examples": len(labels), "eval_loss": loss, "eval_accuracy": accuracy})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
