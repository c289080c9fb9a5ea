"""The server side: a strategy of the older kind."""

from flwr.common import Context, Metrics, NDArrays, Scalar, ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg

from legacy_numpy.task import initial


def mean(metrics: list[tuple[int, Metrics]]) -> Metrics:
    total = sum(examples for examples, _ in metrics)
    return {"accuracy": sum(examples * found["accuracy"] for examples, found in metrics) / total}


def evaluate(server_round: int, parameters: NDArrays, config: dict[str, Scalar]):
    print("CENTRAL", server_round, parameters[0].round(6).tolist())
    return float(parameters[0].sum()), {"cells": parameters[0].size}


def fit_config(server_round: int) -> dict[str, Scalar]:
    return {"lr": 0.5, "server_round": server_round}


def server_fn(context: Context) -> ServerAppComponents:
    strategy = FedAvg(
        fraction_fit=1.0,
        fraction_evaluate=1.0,
        min_available_clients=4,
        initial_parameters=ndarrays_to_parameters(initial()),
        evaluate_fn=evaluate,
        on_fit_config_fn=fit_config,
        evaluate_metrics_aggregation_fn=mean,
    )
    return ServerAppComponents(strategy=strategy, config=ServerConfig(context.run_config["num-server-rounds"]))


app = ServerApp(server_fn=server_fn)
