"""What a node does: trains the model it is sent on its own images, and measures it on them."""

from __future__ import annotations

import numpy as np

from digits import model
from digits.data import Images, Labels, partition
from flq.apps import ArrayRecord, ClientApp, Context, Message, MetricRecord, RecordDict

app = ClientApp()


def my_images(context: Context) -> tuple[Images, Labels]:
    """The images of this node: the SuperNode tells which part of how many is ours."""
    config = context.run_config
    return partition(
        int(context.node_config["partition-id"]),
        int(context.node_config["num-partitions"]),
        alpha=float(config["alpha"]),
        seed=int(config["seed"]),
    )


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train for some epochs and return the weights."""
    images, labels = my_images(context)
    config = context.run_config
    weights = msg.content["arrays"].to_numpy_ndarrays()
    server_round = msg.content["config"]["server-round"]
    if server_round == 1:
        print(f"{len(labels)} images, of each digit {np.bincount(labels, minlength=10).tolist()}")
    loss = model.train(
        weights,
        images,
        labels,
        epochs=int(config["local-epochs"]),
        batch_size=int(config["batch-size"]),
        rate=float(config["learning-rate"]),
        # The same shuffles whenever this round is trained on this node, also after a crash.
        seed=[int(config["seed"]), int(context.node_config["partition-id"]), server_round],
    )
    metrics = MetricRecord({"num-examples": len(labels), "train_loss": loss})
    return Message(RecordDict({"arrays": ArrayRecord(weights), "metrics": metrics}), reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Measure the model on this node's images."""
    images, labels = my_images(context)
    loss, accuracy = model.measure(msg.content["arrays"].to_numpy_ndarrays(), images, labels)
    metrics = MetricRecord({"num-examples": len(labels), "eval_loss": loss, "eval_accuracy": accuracy})
    return Message(RecordDict({"metrics": metrics}), reply_to=msg)
