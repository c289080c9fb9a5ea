"""Rounds of every legacy strategy on fixed inputs, as JSON: executed with Flower (flwr) and with flq in its place."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import numpy as np

CLIENTS = 9
ROUNDS = 3


def strategies() -> dict[str, Any]:
    from flwr.common import ndarrays_to_parameters  # type: ignore[import-not-found]
    from flwr.server import strategy as s  # type: ignore[import-not-found]

    def start() -> Any:
        return ndarrays_to_parameters(initial())

    def loss(server_round: int, arrays: Any, config: Any) -> Any:
        return 1.0 / server_round, {}

    return {
        "FedAvg": s.FedAvg(),
        "FedAvg at once": s.FedAvg(inplace=False),
        "FaultTolerantFedAvg": s.FaultTolerantFedAvg(),
        "FedAvgM": s.FedAvgM(server_learning_rate=0.5, server_momentum=0.9, initial_parameters=start()),
        "FedMedian": s.FedMedian(),
        "FedTrimmedAvg": s.FedTrimmedAvg(beta=0.25),
        "FedProx": s.FedProx(proximal_mu=0.1),
        "FedAdagrad": s.FedAdagrad(initial_parameters=start(), eta=0.3, tau=1e-3),
        "FedAdam": s.FedAdam(initial_parameters=start(), eta=0.3, tau=1e-3),
        "FedYogi": s.FedYogi(initial_parameters=start(), eta=0.3),
        "QFedAvg": s.QFedAvg(q_param=0.5, qffl_learning_rate=0.2, evaluate_fn=loss),
        "Krum": s.Krum(num_malicious_clients=2),
        "Krum of three": s.Krum(num_malicious_clients=2, num_clients_to_keep=3),
        "Bulyan": s.Bulyan(num_malicious_clients=1, to_keep=0),
    }


def initial() -> list[Any]:
    generator = np.random.default_rng(7)
    return [generator.normal(size=(3, 2)), generator.normal(size=4)]


def results(server_round: int, arrays: list[Any]) -> list[Any]:
    from flwr.common import Code, FitRes, Status, ndarrays_to_parameters

    generator = np.random.default_rng(100 + server_round)
    found = []
    for client in range(CLIENTS):
        trained = [array + generator.normal(scale=0.1, size=array.shape) for array in arrays]
        if client == 3:  # a liar
            trained = [array + 100 for array in trained]
        metrics = {"round": server_round}
        found.append((None, FitRes(Status(Code.OK, ""), ndarrays_to_parameters(trained), 5 + client, metrics)))
    return found


class Clients:
    """Stands for a ClientManager: nobody is chosen, results come all the same."""

    def num_available(self) -> int:
        return CLIENTS

    def sample(self, *_: Any, **__: Any) -> list[Any]:
        return []


def main() -> dict[str, Any]:
    from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays

    models: dict[str, Any] = {}
    for name, strategy in strategies().items():
        arrays = initial()
        for server_round in range(1, ROUNDS + 1):
            strategy.configure_fit(server_round, ndarrays_to_parameters(arrays), Clients())
            parameters, _ = strategy.aggregate_fit(server_round, results(server_round, arrays), [])
            arrays = parameters_to_ndarrays(parameters)
            models[f"{name}, round {server_round}"] = [array.tolist() for array in arrays]
    return models


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    if "flq" in sys.argv:
        from flq.apps import alias

        alias.install()
    json.dump(main(), sys.stdout)
