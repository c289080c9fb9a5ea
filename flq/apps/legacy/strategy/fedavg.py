"""Federated averaging (McMahan et al. (2017), https://arxiv.org/abs/1602.05629) for legacy clients."""

from __future__ import annotations

from collections.abc import Callable, Sized
from logging import WARNING

from flq.apps.legacy.clients import ClientManager, ClientProxy
from flq.apps.legacy.parameters import ndarrays_to_parameters, parameters_to_ndarrays
from flq.apps.legacy.strategy.aggregate import aggregate, aggregate_inplace, weighted_loss_avg
from flq.apps.legacy.strategy.base import EvaluateFailure, FitFailure, Strategy
from flq.apps.legacy.typing import (
    Config,
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    Metrics,
    MetricsAggregationFn,
    NDArrays,
    Parameters,
)
from flq.apps.logger import log

EvaluateFn = Callable[[int, NDArrays, Config], tuple[float, Metrics] | None]
"""Measures the model of a round on the server."""

ConfigFn = Callable[[int], Config]
"""The configuration that clients get in a round."""


class FedAvg(Strategy):
    """The mean of the clients' models, weighted by their numbers of examples.

    Parameters
    ----------
    fraction_fit, fraction_evaluate
        The share of the clients online that train and evaluate; no client evaluates at 0.
    min_fit_clients, min_evaluate_clients
        How many do at least.
    min_available_clients
        How many must be online for a round.
    evaluate_fn
        Measures the model of a round on the server: `(round, arrays, {}) -> (loss, metrics)`, or None.
    on_fit_config_fn, on_evaluate_config_fn
        Make the configuration of a round's clients.
    accept_failures
        Whether a round counts in which a client has failed.
    initial_parameters
        The initial model; without it one client is asked for its own.
    fit_metrics_aggregation_fn, evaluate_metrics_aggregation_fn
        Make one set of metrics of the clients'.
    inplace
        Whether models are added up one by one, which needs less memory.

    """

    def __init__(
        self,
        *,
        fraction_fit: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_fit_clients: int = 2,
        min_evaluate_clients: int = 2,
        min_available_clients: int = 2,
        evaluate_fn: EvaluateFn | None = None,
        on_fit_config_fn: ConfigFn | None = None,
        on_evaluate_config_fn: ConfigFn | None = None,
        accept_failures: bool = True,
        initial_parameters: Parameters | None = None,
        fit_metrics_aggregation_fn: MetricsAggregationFn | None = None,
        evaluate_metrics_aggregation_fn: MetricsAggregationFn | None = None,
        inplace: bool = True,
    ) -> None:
        super().__init__()
        if max(min_fit_clients, min_evaluate_clients) > min_available_clients:
            log(WARNING, "min_available_clients is less than the clients that a round needs: it may wait for more")
        self.fraction_fit = fraction_fit
        self.fraction_evaluate = fraction_evaluate
        self.min_fit_clients = min_fit_clients
        self.min_evaluate_clients = min_evaluate_clients
        self.min_available_clients = min_available_clients
        self.evaluate_fn = evaluate_fn
        self.on_fit_config_fn = on_fit_config_fn
        self.on_evaluate_config_fn = on_evaluate_config_fn
        self.accept_failures = accept_failures
        self.initial_parameters = initial_parameters
        self.fit_metrics_aggregation_fn = fit_metrics_aggregation_fn
        self.evaluate_metrics_aggregation_fn = evaluate_metrics_aggregation_fn
        self.inplace = inplace

    def __repr__(self) -> str:
        return f"{type(self).__name__}(accept_failures={self.accept_failures})"

    def num_fit_clients(self, num_available_clients: int) -> tuple[int, int]:
        """How many clients train, and how many must be online."""
        return max(int(num_available_clients * self.fraction_fit), self.min_fit_clients), self.min_available_clients

    def num_evaluation_clients(self, num_available_clients: int) -> tuple[int, int]:
        """How many clients evaluate, and how many must be online."""
        chosen = max(int(num_available_clients * self.fraction_evaluate), self.min_evaluate_clients)
        return chosen, self.min_available_clients

    def initialize_parameters(self, client_manager: ClientManager) -> Parameters | None:  # noqa: ARG002 - the interface
        """The initial model, handed out once."""
        initial, self.initial_parameters = self.initial_parameters, None
        return initial

    def evaluate(self, server_round: int, parameters: Parameters) -> tuple[float, Metrics] | None:
        """What `evaluate_fn` measures."""
        if self.evaluate_fn is None:
            return None
        return self.evaluate_fn(server_round, parameters_to_ndarrays(parameters), {})

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """The chosen clients, all with the same request."""
        config = {} if self.on_fit_config_fn is None else self.on_fit_config_fn(server_round)
        chosen, at_least = self.num_fit_clients(client_manager.num_available())
        request = FitIns(parameters, config)
        return [(client, request) for client in client_manager.sample(chosen, min_num_clients=at_least)]

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, EvaluateIns]]:
        """The chosen clients, all with the same request; none at `fraction_evaluate` 0."""
        if self.fraction_evaluate == 0.0:
            return []
        config = {} if self.on_evaluate_config_fn is None else self.on_evaluate_config_fn(server_round)
        chosen, at_least = self.num_evaluation_clients(client_manager.num_available())
        request = EvaluateIns(parameters, config)
        return [(client, request) for client in client_manager.sample(chosen, min_num_clients=at_least)]

    def aggregate_fit(
        self, server_round: int, results: list[tuple[ClientProxy, FitRes]], failures: list[FitFailure]
    ) -> tuple[Parameters | None, Metrics]:
        """The model that `combine` makes, and metrics; nothing if the round does not count."""
        if not self._counts(results, failures):
            return None, {}
        return ndarrays_to_parameters(self.combine(results)), self._fit_metrics(server_round, results)

    def combine(self, results: list[tuple[ClientProxy, FitRes]]) -> NDArrays:
        """One model of the clients' models: their weighted mean."""
        return aggregate_inplace(results) if self.inplace else aggregate(weighted(results))

    def aggregate_evaluate(
        self, server_round: int, results: list[tuple[ClientProxy, EvaluateRes]], failures: list[EvaluateFailure]
    ) -> tuple[float | None, Metrics]:
        """The weighted mean of the losses, and metrics; nothing if the round does not count."""
        if not self._counts(results, failures):
            return None, {}
        loss = weighted_loss_avg([(answer.num_examples, answer.loss) for _, answer in results])
        return loss, self._evaluate_metrics(server_round, results)

    def _counts(self, results: object, failures: object) -> bool:
        return bool(results) and (self.accept_failures or not failures)

    def _fit_metrics(self, server_round: int, results: list[tuple[ClientProxy, FitRes]]) -> Metrics:
        measured = [(answer.num_examples, answer.metrics) for _, answer in results]
        return _metrics("fit_metrics_aggregation_fn", self.fit_metrics_aggregation_fn, measured, server_round)

    def _evaluate_metrics(self, server_round: int, results: list[tuple[ClientProxy, EvaluateRes]]) -> Metrics:
        measured = [(answer.num_examples, answer.metrics) for _, answer in results]
        return _metrics("evaluate_metrics_aggregation_fn", self.evaluate_metrics_aggregation_fn, measured, server_round)


class FaultTolerantFedAvg(FedAvg):
    """FedAvg whose rounds count if enough of the clients have answered; a client is enough for one.

    `min_completion_rate_fit` and `min_completion_rate_evaluate` are the shares that must have.
    """

    def __init__(
        self,
        *,
        fraction_fit: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_fit_clients: int = 1,
        min_evaluate_clients: int = 1,
        min_available_clients: int = 1,
        evaluate_fn: EvaluateFn | None = None,
        on_fit_config_fn: ConfigFn | None = None,
        on_evaluate_config_fn: ConfigFn | None = None,
        min_completion_rate_fit: float = 0.5,
        min_completion_rate_evaluate: float = 0.5,
        initial_parameters: Parameters | None = None,
        fit_metrics_aggregation_fn: MetricsAggregationFn | None = None,
        evaluate_metrics_aggregation_fn: MetricsAggregationFn | None = None,
    ) -> None:
        super().__init__(
            fraction_fit=fraction_fit,
            fraction_evaluate=fraction_evaluate,
            min_fit_clients=min_fit_clients,
            min_evaluate_clients=min_evaluate_clients,
            min_available_clients=min_available_clients,
            evaluate_fn=evaluate_fn,
            on_fit_config_fn=on_fit_config_fn,
            on_evaluate_config_fn=on_evaluate_config_fn,
            initial_parameters=initial_parameters,
            fit_metrics_aggregation_fn=fit_metrics_aggregation_fn,
            evaluate_metrics_aggregation_fn=evaluate_metrics_aggregation_fn,
        )
        self.min_completion_rate_fit = min_completion_rate_fit
        self.min_completion_rate_evaluate = min_completion_rate_evaluate

    def aggregate_fit(
        self, server_round: int, results: list[tuple[ClientProxy, FitRes]], failures: list[FitFailure]
    ) -> tuple[Parameters | None, Metrics]:
        """As FedAvg, if enough clients have trained."""
        if _completion(results, failures) < self.min_completion_rate_fit:
            return None, {}
        return super().aggregate_fit(server_round, results, failures)

    def aggregate_evaluate(
        self, server_round: int, results: list[tuple[ClientProxy, EvaluateRes]], failures: list[EvaluateFailure]
    ) -> tuple[float | None, Metrics]:
        """As FedAvg, if enough clients have evaluated."""
        if _completion(results, failures) < self.min_completion_rate_evaluate:
            return None, {}
        return super().aggregate_evaluate(server_round, results, failures)


def weighted(results: list[tuple[ClientProxy, FitRes]]) -> list[tuple[NDArrays, int]]:
    """The models of answers, with their numbers of examples."""
    return [(parameters_to_ndarrays(answer.parameters), answer.num_examples) for _, answer in results]


def _completion(results: Sized, failures: Sized) -> float:
    done, failed = len(results), len(failures)
    return done / (done + failed) if done else 0.0


def _metrics(
    name: str, aggregation: MetricsAggregationFn | None, measured: list[tuple[int, Metrics]], server_round: int
) -> Metrics:
    if aggregation is not None:
        return aggregation(measured)
    if server_round == 1 and any(metrics for _, metrics in measured):
        log(WARNING, "the clients return metrics, but the strategy has no %s", name)
    return {}
