"""The client side."""

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(msg, context):
    value = msg.content["arrays"].to_numpy_ndarrays()[0] + context.node_config["partition-id"]
    return Message(RecordDict({"arrays": ArrayRecord([value])}), reply_to=msg)
