"""The client side: names come back in another order."""

from flwr.client import ClientApp
from flwr.common import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    record = msg.content.array_records["arrays"]
    trained = {name: Array(record[name].numpy() + 1.0) for name in reversed(list(record))}
    reply = RecordDict({"arrays": ArrayRecord(trained), "metrics": MetricRecord({"num-examples": 1})})
    return Message(reply, reply_to=msg)
