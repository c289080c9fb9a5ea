"""The client side: train and evaluate."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.logger import log
from logging import INFO

app = ClientApp()


@app.train()
def train(msg: Message, context: Context):
    arrays = msg.content["arrays"].to_numpy_ndarrays()
    arrays[0] += msg.content["config"]["lr"]
    log(INFO, "partition %s of %s", context.node_config["partition-id"], context.node_config["num-partitions"])
    metrics = MetricRecord({"train_loss": 0.5, "num-examples": 10})
    return Message(content=RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context):
    seen = float(msg.content["arrays"].to_numpy_ndarrays()[0][0])
    return Message(content=RecordDict({"metrics": MetricRecord({"seen": seen, "num-examples": 5})}), reply_to=msg)
