"""The ClientApp: what happens on a node, next to its data."""

from __future__ import annotations

from flq.apps import ArrayRecord, ClientApp, Context, Message, MetricRecord, RecordDict
from torch import nn
from torch.utils.data import TensorDataset

from torch_app import data, model

# A ClientApp answers messages. flq runs it on every node, in a process of its own, whenever the server sends one.
app = ClientApp()


def my_data(context: Context) -> TensorDataset:
    """The data of the node that this runs on."""
    # context.node_config says what is special about this node. Every node has a "partition-id" (0, 1, 2, ...) and
    # "num-partitions". Nodes of your own get more with: flq supernode --node-config 'path="/data/ward-a"'
    node = context.node_config
    seed = int(context.run_config["seed"])
    return data.partition(int(node["partition-id"]), int(node["num-partitions"]), seed=seed)


def my_model(message: Message, context: Context) -> nn.Module:
    """The network with the weights that the server has sent."""
    # The content of a message is a dictionary of records. An ArrayRecord holds arrays, a MetricRecord holds numbers,
    # a ConfigRecord holds settings. FedAvg calls the model "arrays"; here it is the state dict of the network.
    network = model.network(hidden=int(context.run_config["hidden"]))
    network.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return network


# A message has a type. This function answers those of type "train".
@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the model that the server has sent, on this node's data, and send it back."""
    network = my_model(message, context)
    examples = my_data(context)
    server_round = message.content["config"]["server-round"]  # FedAvg's settings for this round

    # context.run_config is the same on all nodes: [tool.flq.app.config] of pyproject.toml, as changed by --run-config.
    config = context.run_config
    model.train(
        network,
        examples,
        learning_rate=float(config["learning-rate"]),
        epochs=int(config["local-epochs"]),
        batch_size=int(config["batch-size"]),
        # A round may have to be trained again, after a crash: the same seed makes it the same training.
        seed=int(config["seed"]) + server_round,
    )
    loss, accuracy = model.measure(network, examples)
    print(f"round {server_round}: trained on {len(examples)} examples")  # see: flq logs RUN

    # FedAvg takes one ArrayRecord and one MetricRecord, and counts each node by its "num-examples".
    metrics = MetricRecord({"num-examples": len(examples), "train_loss": loss, "train_accuracy": accuracy})
    return Message(RecordDict({"arrays": ArrayRecord(network.state_dict()), "metrics": metrics}), reply_to=message)


# This one answers those of type "evaluate": only the numbers go back.
@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure the model that the server has sent on this node's data."""
    examples = my_data(context)
    loss, accuracy = model.measure(my_model(message, context), examples)
    metrics = MetricRecord({"num-examples": len(examples), "eval_loss": loss, "eval_accuracy": accuracy})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
