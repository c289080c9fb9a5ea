"""Federated averaging for clients whose arrays are raw float32 numbers, as those of Android are."""

from __future__ import annotations

import numpy as np

from flq.apps.legacy.clients import ClientProxy
from flq.apps.legacy.strategy.aggregate import aggregate
from flq.apps.legacy.strategy.base import FitFailure
from flq.apps.legacy.strategy.fedavg import ConfigFn, EvaluateFn, FedAvg
from flq.apps.legacy.typing import FitRes, Metrics, NDArray, NDArrays, Parameters


class FedAvgAndroid(FedAvg):
    """FedAvg of flat float32 arrays without headers, little-endian. Parameters: those of FedAvg without metrics."""

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
            accept_failures=accept_failures,
            initial_parameters=initial_parameters,
        )

    def evaluate(self, server_round: int, parameters: Parameters) -> tuple[float, Metrics] | None:
        """What `evaluate_fn` measures."""
        if self.evaluate_fn is None:
            return None
        return self.evaluate_fn(server_round, self.parameters_to_ndarrays(parameters), {})

    def aggregate_fit(
        self, server_round: int, results: list[tuple[ClientProxy, FitRes]], failures: list[FitFailure]
    ) -> tuple[Parameters | None, Metrics]:
        """The weighted mean of the models; nothing if the round does not count."""
        if not self._counts(results, failures):
            return None, {}
        models = [(self.parameters_to_ndarrays(answer.parameters), answer.num_examples) for _, answer in results]
        return self.ndarrays_to_parameters(aggregate(models)), self._fit_metrics(server_round, results)

    def ndarrays_to_parameters(self, ndarrays: NDArrays) -> Parameters:
        """A model in raw bytes."""
        return Parameters([self.ndarray_to_bytes(ndarray) for ndarray in ndarrays], "numpy.nda")

    def parameters_to_ndarrays(self, parameters: Parameters) -> NDArrays:
        """The flat arrays of a model in raw bytes."""
        return [self.bytes_to_ndarray(tensor) for tensor in parameters.tensors]

    def ndarray_to_bytes(self, ndarray: NDArray) -> bytes:
        """An array as raw float32 numbers."""
        return np.asarray(ndarray, "<f4").tobytes()

    def bytes_to_ndarray(self, tensor: bytes) -> NDArray:
        """Raw float32 numbers as a flat array."""
        return np.frombuffer(tensor, "<f4")
