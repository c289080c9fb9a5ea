"""q-FedAvg for legacy clients: Li et al. (2020), "Fair Resource Allocation in Federated Learning".

https://arxiv.org/abs/1905.10497
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flq.apps.legacy.clients import ClientManager, ClientProxy
from flq.apps.legacy.parameters import ndarrays_to_parameters, parameters_to_ndarrays
from flq.apps.legacy.strategy.aggregate import aggregate_qffl
from flq.apps.legacy.strategy.base import FitFailure
from flq.apps.legacy.strategy.fedavg import FedAvg
from flq.apps.legacy.typing import FitIns, FitRes, Metrics, NDArrays, Parameters
from flq.errors import StrategyError

_SMALL = 1e-10  # keeps powers of a loss of 0 finite


class QFedAvg(FedAvg):
    """Gives clients with a higher loss more weight, the more the higher `q_param` is.

    Needs `evaluate_fn`, whose loss of the model stands for that of the clients. `qffl_learning_rate` is the clients'
    learning rate. The other parameters are those of FedAvg.
    """

    def __init__(
        self,
        *,
        q_param: float = 0.2,
        qffl_learning_rate: float = 0.1,
        min_fit_clients: int = 1,
        min_evaluate_clients: int = 1,
        min_available_clients: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(
            min_fit_clients=min_fit_clients,
            min_evaluate_clients=min_evaluate_clients,
            min_available_clients=min_available_clients,
            **options,
        )
        self.q_param = q_param
        self.learning_rate = qffl_learning_rate
        self.pre_weights: NDArrays | None = None

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """As FedAvg; keeps the model."""
        self.pre_weights = parameters_to_ndarrays(parameters)
        return super().configure_fit(server_round, parameters, client_manager)

    def aggregate_fit(
        self, server_round: int, results: list[tuple[ClientProxy, FitRes]], failures: list[FitFailure]
    ) -> tuple[Parameters | None, Metrics]:
        """The step of algorithm 2 of the paper. Raises `StrategyError` without a model or a loss of it."""
        if not self._counts(results, failures):
            return None, {}
        if self.pre_weights is None:
            raise StrategyError("QFedAvg has no model: aggregate_fit comes after configure_fit")
        measured = self.evaluate(server_round, ndarrays_to_parameters(self.pre_weights))
        if measured is None:
            raise StrategyError("QFedAvg needs the loss of the model", hint="give it an evaluate_fn")
        loss = measured[0] + _SMALL
        deltas: list[NDArrays] = []
        estimates: list[float] = []
        for _, answer in results:
            trained = parameters_to_ndarrays(answer.parameters)
            gradient = [(old - new) / self.learning_rate for old, new in zip(self.pre_weights, trained, strict=True)]
            squares = sum(float(np.square(layer).sum()) for layer in gradient)
            deltas.append([loss**self.q_param * layer for layer in gradient])
            estimates.append(
                self.q_param * loss ** (self.q_param - 1) * squares + loss**self.q_param / self.learning_rate
            )
        combined = aggregate_qffl(self.pre_weights, deltas, estimates)
        return ndarrays_to_parameters(combined), self._fit_metrics(server_round, results)
