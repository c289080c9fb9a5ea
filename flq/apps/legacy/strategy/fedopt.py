"""Adaptive optimisers on the server (Reddi et al. (2021), "Adaptive Federated Optimization", https://arxiv.org/abs/2003.00295)."""

from __future__ import annotations

from typing import Any

import numpy as np

from flq.apps.legacy.clients import ClientProxy
from flq.apps.legacy.parameters import ndarrays_to_parameters, parameters_to_ndarrays
from flq.apps.legacy.strategy.base import FitFailure
from flq.apps.legacy.strategy.fedavg import FedAvg
from flq.apps.legacy.typing import FitRes, Metrics, NDArray, NDArrays, Parameters


class FedOpt(FedAvg):
    """The base of them: takes the clients' mean as a direction. `initial_parameters` are needed.

    Parameters
    ----------
    eta, eta_l
        The learning rates of the server, and of the clients (which is only kept).
    beta_1, beta_2
        How much of the first and of the second moment is carried on.
    tau
        How far the optimiser adapts: what is added to the root of the second moment.
    options
        The parameters of FedAvg.

    """

    def __init__(
        self,
        *,
        initial_parameters: Parameters,
        eta: float = 0.1,
        eta_l: float = 0.1,
        beta_1: float = 0.0,
        beta_2: float = 0.0,
        tau: float = 1e-9,
        **options: Any,
    ) -> None:
        super().__init__(initial_parameters=initial_parameters, **options)
        self.current_weights: NDArrays = parameters_to_ndarrays(initial_parameters)
        self.eta = eta
        self.eta_l = eta_l
        self.tau = tau
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.m_t: NDArrays | None = None
        self.v_t: NDArrays | None = None

    def aggregate_fit(
        self, server_round: int, results: list[tuple[ClientProxy, FitRes]], failures: list[FitFailure]
    ) -> tuple[Parameters | None, Metrics]:
        """The last model and a step of the optimiser."""
        mean, metrics = super().aggregate_fit(server_round, results, failures)
        if mean is None:
            return None, metrics
        deltas = [new - old for new, old in zip(parameters_to_ndarrays(mean), self.current_weights, strict=True)]
        m, v = self._moments(deltas)
        rate = self.rate(server_round)
        self.current_weights = [
            old + rate * first / (np.sqrt(second) + self.tau)
            for old, first, second in zip(self.current_weights, m, v, strict=True)
        ]
        return ndarrays_to_parameters(self.current_weights), metrics

    def rate(self, server_round: int) -> float:  # noqa: ARG002 - of the optimisers that warm up
        """The learning rate of a round."""
        return self.eta

    def second_moment(self, before: NDArray, delta: NDArray) -> NDArray:
        """The second moment after a step of `delta`: the sum of squares."""
        return before + np.square(delta)

    def _moments(self, deltas: NDArrays) -> tuple[NDArrays, NDArrays]:
        m = self.m_t or [np.zeros_like(delta) for delta in deltas]
        v = self.v_t or [np.zeros_like(delta) for delta in deltas]
        self.m_t = [self.beta_1 * before + (1 - self.beta_1) * now for before, now in zip(m, deltas, strict=True)]
        self.v_t = [self.second_moment(before, now) for before, now in zip(v, deltas, strict=True)]
        return self.m_t, self.v_t


class FedAdagrad(FedOpt):
    """Steps become smaller with the sum of squares of all steps before. Parameters: see FedOpt."""

    def __init__(
        self, *, initial_parameters: Parameters, eta: float = 0.1, eta_l: float = 0.1, tau: float = 1e-9, **options: Any
    ) -> None:
        super().__init__(initial_parameters=initial_parameters, eta=eta, eta_l=eta_l, tau=tau, **options)


class FedAdam(FedOpt):
    """Steps follow moving means of the first and the second moment, bias-corrected. Parameters: see FedOpt."""

    def __init__(
        self,
        *,
        initial_parameters: Parameters,
        eta: float = 0.1,
        eta_l: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        tau: float = 1e-9,
        **options: Any,
    ) -> None:
        super().__init__(
            initial_parameters=initial_parameters,
            eta=eta,
            eta_l=eta_l,
            beta_1=beta_1,
            beta_2=beta_2,
            tau=tau,
            **options,
        )

    def rate(self, server_round: int) -> float:
        """The learning rate with the correction of moments that began at 0; Flower (flwr) counts rounds from 2."""
        steps = server_round + 1.0
        return float(self.eta * np.sqrt(1 - self.beta_2**steps) / (1 - self.beta_1**steps))

    def second_moment(self, before: NDArray, delta: NDArray) -> NDArray:
        """The moving mean of squares."""
        return self.beta_2 * before + (1 - self.beta_2) * np.square(delta)


class FedYogi(FedOpt):
    """FedAdam whose second moment moves by the square of the step at most. Parameters: see FedOpt."""

    def __init__(
        self,
        *,
        initial_parameters: Parameters,
        eta: float = 0.01,
        eta_l: float = 0.0316,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        tau: float = 1e-3,
        **options: Any,
    ) -> None:
        super().__init__(
            initial_parameters=initial_parameters,
            eta=eta,
            eta_l=eta_l,
            beta_1=beta_1,
            beta_2=beta_2,
            tau=tau,
            **options,
        )

    def second_moment(self, before: NDArray, delta: NDArray) -> NDArray:
        """The second moment, moved towards the square of the step by a part of that."""
        squared = np.square(delta)
        moved: NDArray = before - (1 - self.beta_2) * squared * np.sign(before - squared)
        return moved
