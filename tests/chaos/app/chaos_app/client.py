"""Clients whose updates depend on all that they were sent before: a task that is lost or done twice shows."""

import random
import time

import numpy as np

from flq.apps import ArrayRecord, ClientApp, ConfigRecord, Context, Message, MetricRecord, RecordDict

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """A step along noise and momentum; the momentum, and how many steps there were, stay on the node."""
    *arrays, ballast = message.content.array_records["arrays"].to_numpy_ndarrays()
    kept = context.state
    momentum = (
        kept.array_records["momentum"].to_numpy_ndarrays() if kept else [np.zeros_like(array) for array in arrays]
    )
    steps = int(number(kept.config_records["count"]["steps"])) + 1 if kept else 1
    for index, array in enumerate(arrays):
        noise = np.random.standard_normal(array.shape).astype(array.dtype)  # noqa: NPY002 - the seeded one
        momentum[index] = 0.9 * momentum[index] + noise / steps
        arrays[index] = (array + 0.1 * momentum[index] + random.random()).astype(array.dtype)  # noqa: S311
    context.state = RecordDict({"momentum": ArrayRecord(momentum), "count": ConfigRecord({"steps": steps})})
    time.sleep(float(context.run_config["pause"]))
    metrics = MetricRecord({"num-examples": 10 + int(context.node_config["partition-id"]), "steps": steps})
    ballast += int(context.node_config["partition-id"]) + 1  # so that its mean is nothing that any node has sent
    reply = RecordDict({"arrays": ArrayRecord([*arrays, ballast]), "metrics": metrics})
    return Message(reply, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """The mean of the model, and the steps that the node has made."""
    mean = float(np.mean(message.content.array_records["arrays"].to_numpy_ndarrays()[0]))
    metrics = {"num-examples": 1, "mean": mean, "steps": int(number(context.state.config_records["count"]["steps"]))}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


@app.query()
def query(message: Message, context: Context) -> Message:
    """Moments of numbers that the node draws; how often it was asked stays on the node."""
    asked = int(number(context.state.config_records["asked"]["times"])) + 1 if context.state else 1
    context.state["asked"] = ConfigRecord({"times": asked})
    scale = number(message.content.config_records["question"]["scale"])
    drawn = np.random.default_rng(random.randrange(1 << 30)).normal(asked, scale, 500)  # noqa: S311
    time.sleep(float(context.run_config["pause"]))
    moments = ArrayRecord([np.array([drawn.mean(), drawn.var()])])
    ballast = ArrayRecord([message.content.array_records["ballast"].to_numpy_ndarrays()[0] + 0.5])
    return Message(RecordDict({"moments": moments, "ballast": ballast}), reply_to=message)


def number(value: object) -> float:
    """A number out of a record. Raises `TypeError` for anything else."""
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return value
