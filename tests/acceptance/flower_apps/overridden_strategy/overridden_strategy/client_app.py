"""The client side."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import arrays_size_mod, message_size_mod

app = ClientApp(mods=[message_size_mod])


@app.train(mods=[arrays_size_mod])
def train(msg: Message, context: Context) -> Message:
    moved = [array + msg.content["config"]["lr"] for array in msg.content["arrays"].to_numpy_ndarrays()]
    reply = RecordDict({"arrays": ArrayRecord(moved), "metrics": MetricRecord({"num-examples": 1})})
    return Message(reply, reply_to=msg)
