"""Models of XGBoost from legacy clients: trees of all clients together, or one client after the other.

Chen and Guestrin (2016), "XGBoost: A Scalable Tree Boosting System", https://arxiv.org/abs/1603.02754. A model is one
tensor: the booster in its JSON format.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flq.apps.legacy.clients import ClientManager, ClientProxy
from flq.apps.legacy.strategy.base import EvaluateFailure, FitFailure
from flq.apps.legacy.strategy.fedavg import FedAvg
from flq.apps.legacy.typing import Config, EvaluateIns, EvaluateRes, FitIns, FitRes, Metrics, Parameters
from flq.apps.strategy.fold import Unusable
from flq.apps.strategy.xgboost import Forest
from flq.errors import StrategyError

EvaluateFunction = Callable[[int, Parameters, Config], tuple[float, Metrics] | None]
"""Measures the model of a round on the server, in bytes."""


class _Trees(FedAvg):
    """What both have in common: models that are bytes, and losses that nobody averages."""

    global_model: bytes | None = None

    def aggregate_evaluate(
        self, server_round: int, results: list[tuple[ClientProxy, EvaluateRes]], failures: list[EvaluateFailure]
    ) -> tuple[float | None, Metrics]:
        """The clients' metrics; the loss is 0, since theirs are of different objectives."""
        if not self._counts(results, failures):
            return None, {}
        return 0.0, self._evaluate_metrics(server_round, results)


class FedXgbBagging(_Trees):
    """Adds the new trees of all clients to the model. `evaluate_function` measures it; the rest as in FedAvg."""

    def __init__(self, evaluate_function: EvaluateFunction | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.evaluate_function = evaluate_function

    def evaluate(self, server_round: int, parameters: Parameters) -> tuple[float, Metrics] | None:
        """What `evaluate_function` measures."""
        return None if self.evaluate_function is None else self.evaluate_function(server_round, parameters, {})

    def aggregate_fit(
        self, server_round: int, results: list[tuple[ClientProxy, FitRes]], failures: list[FitFailure]
    ) -> tuple[Parameters | None, Metrics]:
        """The model with the trees of all clients. Raises `StrategyError` for a model that is none."""
        if not self._counts(results, failures):
            return None, {}
        forest = Forest(self.global_model or b"")
        for client, answer in results:
            for tensor in answer.parameters.tensors:
                try:
                    forest.add({"0": np.frombuffer(tensor, np.uint8)}, 1.0)
                except Unusable as why:
                    raise StrategyError(f"round {server_round}: the model of client {client.cid}: {why}") from why
        (array,) = forest.finish().values()
        self.global_model = array.numpy().tobytes()
        return Parameters([self.global_model], ""), self._fit_metrics(server_round, results)


class FedXgbCyclic(_Trees):
    """One client after the other trains the model on. Parameters: those of FedAvg."""

    def aggregate_fit(
        self, server_round: int, results: list[tuple[ClientProxy, FitRes]], failures: list[FitFailure]
    ) -> tuple[Parameters | None, Metrics]:
        """The model of the client whose turn it was."""
        if not self._counts(results, failures):
            return None, {}
        self.global_model = results[-1][1].parameters.tensors[0]
        return Parameters([self.global_model], ""), self._fit_metrics(server_round, results)

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """The client whose turn it is."""
        return _turn(server_round, super().configure_fit(server_round, parameters, client_manager))

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, EvaluateIns]]:
        """The client whose turn it is."""
        return _turn(server_round, super().configure_evaluate(server_round, parameters, client_manager))


def _turn(server_round: int, chosen: list[tuple[ClientProxy, Any]]) -> list[tuple[ClientProxy, Any]]:
    in_order = sorted(chosen, key=lambda item: (len(item[0].cid), item[0].cid))
    return in_order and [in_order[(server_round - 1) % len(in_order)]]
