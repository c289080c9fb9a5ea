"""Federated averaging with momentum on the server (Hsu et al. (2019), https://arxiv.org/abs/1909.06335)."""

from __future__ import annotations

from typing import Any

from flq.apps.legacy.clients import ClientManager, ClientProxy
from flq.apps.legacy.parameters import ndarrays_to_parameters, parameters_to_ndarrays
from flq.apps.legacy.strategy.base import FitFailure
from flq.apps.legacy.strategy.fedavg import FedAvg
from flq.apps.legacy.typing import FitRes, Metrics, NDArrays, Parameters
from flq.errors import StrategyError


class FedAvgM(FedAvg):
    """FedAvg whose step is scaled by `server_learning_rate` and carried on by `server_momentum`.

    Either needs `initial_parameters`. The other parameters are those of FedAvg.
    """

    def __init__(self, *, server_learning_rate: float = 1.0, server_momentum: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.server_learning_rate = server_learning_rate
        self.server_momentum = server_momentum
        self.server_opt = server_momentum != 0.0 or server_learning_rate != 1.0
        self.momentum_vector: NDArrays | None = None

    def initialize_parameters(self, client_manager: ClientManager) -> Parameters | None:  # noqa: ARG002 - the interface
        """The initial model, from which the first step is taken."""
        return self.initial_parameters

    def aggregate_fit(
        self, server_round: int, results: list[tuple[ClientProxy, FitRes]], failures: list[FitFailure]
    ) -> tuple[Parameters | None, Metrics]:
        """The last model and a step towards the clients' mean. Raises `StrategyError` if there is no last model."""
        mean, metrics = super().aggregate_fit(server_round, results, failures)
        if mean is None or not self.server_opt:
            return mean, metrics
        if self.initial_parameters is None:
            raise StrategyError("FedAvgM with momentum or a learning rate needs initial_parameters")
        last = parameters_to_ndarrays(self.initial_parameters)
        step = [old - new for old, new in zip(last, parameters_to_ndarrays(mean), strict=True)]
        if self.server_momentum > 0.0:
            if self.momentum_vector is not None:
                carried = zip(self.momentum_vector, step, strict=True)
                step = [self.server_momentum * before + now for before, now in carried]
            self.momentum_vector = step
        moved = [old - self.server_learning_rate * change for old, change in zip(last, step, strict=True)]
        self.initial_parameters = ndarrays_to_parameters(moved)
        return self.initial_parameters, metrics
