"""The client side: a histogram of its data, and a question that it does not like."""

import numpy as np
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query("histogram")
def histogram(msg, context):
    data = np.arange(context.node_config["partition-id"] + 1)
    counts, _ = np.histogram(data, bins=msg.content["config"]["bins"])
    return Message(RecordDict({"counts": MetricRecord({"counts": counts.tolist()})}), reply_to=msg)


@app.query()
def anything(msg, context):
    if context.node_config["partition-id"] == 0:
        raise ValueError("not me")
    return Message(RecordDict(), reply_to=msg)
