"""The client side: counts its messages in `context.state`."""

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.client import ClientApp

from .task import zeros

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    counter = context.state.metric_records.get("counter", MetricRecord({"count": 0}))
    counter["count"] += 1
    context.state["counter"] = counter
    metrics = MetricRecord({"num-examples": 1, "count": counter["count"]})
    return Message(RecordDict({"arrays": zeros(), "metrics": metrics}), reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=msg)
