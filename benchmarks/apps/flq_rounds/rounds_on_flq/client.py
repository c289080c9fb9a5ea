"""Clients that return what they got."""

from flq.apps import ClientApp, Context, Message, MetricRecord, RecordDict

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:  # noqa: ARG001 - the framework's signature
    """The model as it came."""
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": message.content["arrays"], "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:  # noqa: ARG001 - the framework's signature
    """How many numbers the model has."""
    numbers = sum(array.size for array in message.content["arrays"].to_numpy_ndarrays())
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "floats": numbers})}), reply_to=message)
