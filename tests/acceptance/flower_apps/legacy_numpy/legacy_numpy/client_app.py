"""The client side: a NumPyClient."""

from flwr.client import ClientApp, NumPyClient
from flwr.common import Context


class FlowerClient(NumPyClient):
    """Moves the model by the learning rate."""

    def __init__(self, partition: int) -> None:
        self.partition = partition

    def fit(self, parameters, config):
        return [array + config["lr"] for array in parameters], 10 + self.partition, {"round": config["server_round"]}

    def evaluate(self, parameters, config):
        return float(parameters[0].mean()), 10, {"accuracy": 0.75}


def client_fn(context: Context):
    return FlowerClient(context.node_config["partition-id"]).to_client()


app = ClientApp(client_fn=client_fn)
