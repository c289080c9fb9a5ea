"""Differential privacy around a legacy strategy: updates are clipped, the model gets Gaussian noise.

Fixed clipping: McMahan et al. (2018), "Learning Differentially Private Recurrent Language Models",
https://arxiv.org/abs/1710.06963. Adaptive clipping: Andrew et al. (2021), "Differentially Private Learning with
Adaptive Clipping", https://arxiv.org/abs/1905.03871. The noise comes from numpy's global generator, which the run
seeds: whoever knows the seed of a run knows its noise.
"""

from __future__ import annotations

import math
from logging import INFO, WARNING

import numpy as np

from flq.apps.clipping import CLIPPING_NORM, NORM_BIT, clipped
from flq.apps.legacy.clients import ClientManager, ClientProxy
from flq.apps.legacy.parameters import ndarrays_to_parameters, parameters_to_ndarrays
from flq.apps.legacy.strategy.base import EvaluateFailure, FitFailure, Strategy
from flq.apps.legacy.typing import EvaluateIns, EvaluateRes, FitIns, FitRes, Metrics, NDArrays, Parameters
from flq.apps.logger import log
from flq.apps.strategy.privacy import noise_for_count
from flq.errors import StrategyError
from flq.wire.records import ArrayRecord


class _Private(Strategy):
    """Hands everything on to `strategy`, and adds noise to the model that it makes."""

    on_clients = False
    """Whether the clients clip their updates."""

    def __init__(
        self, strategy: Strategy, noise_multiplier: float, num_sampled_clients: int, clipping_norm: float
    ) -> None:
        super().__init__()
        if noise_multiplier < 0:
            raise ValueError(f"noise_multiplier is {noise_multiplier}; it must be 0 or more")
        if clipping_norm <= 0:
            raise ValueError(f"the clipping norm is {clipping_norm}; it must be positive")
        if num_sampled_clients <= 0:
            raise ValueError(f"num_sampled_clients is {num_sampled_clients}; it must be positive")
        self.strategy = strategy
        self.noise_multiplier = noise_multiplier
        self.num_sampled_clients = num_sampled_clients
        self.clipping_norm = clipping_norm
        self.current_round_params: NDArrays = []

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.strategy!r})"

    def initialize_parameters(self, client_manager: ClientManager) -> Parameters | None:
        """The initial model of the strategy."""
        return self.strategy.initialize_parameters(client_manager)

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """Whom the strategy chooses; clients that clip are told the norm."""
        self.current_round_params = parameters_to_ndarrays(parameters)
        chosen = self.strategy.configure_fit(server_round, parameters, client_manager)
        if not self.on_clients:
            return chosen
        return [
            (client, FitIns(request.parameters, {**request.config, CLIPPING_NORM: self.clipping_norm}))
            for client, request in chosen
        ]

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, EvaluateIns]]:
        """Whom the strategy chooses."""
        return self.strategy.configure_evaluate(server_round, parameters, client_manager)

    def aggregate_fit(
        self, server_round: int, results: list[tuple[ClientProxy, FitRes]], failures: list[FitFailure]
    ) -> tuple[Parameters | None, Metrics]:
        """The model of clipped updates, with noise; none if a client has failed: the noise would not be enough."""
        if failures or not results:
            return None, {}
        if len(results) != self.num_sampled_clients:
            log(WARNING, "%d clients have trained; the noise is for %d", len(results), self.num_sampled_clients)
        shortened = [self._clip(answer) for _, answer in results]
        norm = self.clipping_norm
        self.learn(sum(shortened), len(results))
        parameters, metrics = self.strategy.aggregate_fit(server_round, results, failures)
        return (None if parameters is None else self._noisy(parameters, norm)), metrics

    def aggregate_evaluate(
        self, server_round: int, results: list[tuple[ClientProxy, EvaluateRes]], failures: list[EvaluateFailure]
    ) -> tuple[float | None, Metrics]:
        """What the strategy makes of it."""
        return self.strategy.aggregate_evaluate(server_round, results, failures)

    def evaluate(self, server_round: int, parameters: Parameters) -> tuple[float, Metrics] | None:
        """What the strategy measures."""
        return self.strategy.evaluate(server_round, parameters)

    def learn(self, clipped: int, updates: int) -> None:
        """Take note of how many updates had to be clipped: nothing, if the norm is fixed."""

    def _clip(self, answer: FitRes) -> bool:
        """Clip one update in place of the client, unless that has; whether it had to be."""
        if self.on_clients:
            return self._told(answer)
        trained = ArrayRecord(parameters_to_ndarrays(answer.parameters))
        shortened, was_clipped = clipped(trained, ArrayRecord(self.current_round_params), self.clipping_norm)
        answer.parameters = ndarrays_to_parameters(shortened.to_numpy_ndarrays())
        return was_clipped

    def _told(self, answer: FitRes) -> bool:  # noqa: ARG002 - of the adaptive one
        return False

    def _noisy(self, parameters: Parameters, norm: float) -> Parameters:
        deviation = self.noise_multiplier * norm / self.num_sampled_clients
        log(INFO, "noise of standard deviation %.4g", deviation)
        arrays = parameters_to_ndarrays(parameters)
        return ndarrays_to_parameters(
            [(array + np.random.normal(0.0, deviation, array.shape)).astype(array.dtype) for array in arrays]  # noqa: NPY002 - the run seeds it
        )


class DifferentialPrivacyServerSideFixedClipping(_Private):
    """Clips each update to `clipping_norm` (L2, over all arrays) on the server."""

    def __init__(
        self, strategy: Strategy, noise_multiplier: float, clipping_norm: float, num_sampled_clients: int
    ) -> None:
        super().__init__(strategy, noise_multiplier, num_sampled_clients, clipping_norm)


class DifferentialPrivacyClientSideFixedClipping(DifferentialPrivacyServerSideFixedClipping):
    """The same, clipped by the clients with `fixedclipping_mod`."""

    on_clients = True


class DifferentialPrivacyServerSideAdaptiveClipping(_Private):
    """Clips on the server to a norm that follows a quantile of the updates' norms.

    `initial_clipping_norm` moves by `clip_norm_lr` until the share `target_clipped_quantile` of the updates is clipped.
    `clipped_count_stddev` is the noise on that count; a twentieth of the clients by default.
    """

    def __init__(  # noqa: PLR0917 - the order of Flower (flwr), for apps that give them by position
        self,
        strategy: Strategy,
        noise_multiplier: float,
        num_sampled_clients: int,
        initial_clipping_norm: float = 0.1,
        target_clipped_quantile: float = 0.5,
        clip_norm_lr: float = 0.2,
        clipped_count_stddev: float | None = None,
    ) -> None:
        super().__init__(strategy, noise_multiplier, num_sampled_clients, initial_clipping_norm)
        if not 0 <= target_clipped_quantile <= 1:
            raise ValueError(f"target_clipped_quantile is {target_clipped_quantile}; it must be between 0 and 1")
        if clip_norm_lr <= 0:
            raise ValueError(f"clip_norm_lr is {clip_norm_lr}; it must be positive")
        self.target_clipped_quantile = target_clipped_quantile
        self.clip_norm_lr = clip_norm_lr
        self.clipped_count_stddev, self.noise_multiplier = noise_for_count(
            noise_multiplier, num_sampled_clients, clipped_count_stddev
        )

    def learn(self, clipped: int, updates: int) -> None:
        """Move the norm: times exp(rate (share clipped - quantile)), the share with noise."""
        count = float(np.random.normal(clipped, self.clipped_count_stddev))  # noqa: NPY002 - the run seeds it
        self.clipping_norm *= math.exp(self.clip_norm_lr * (count / updates - self.target_clipped_quantile))


class DifferentialPrivacyClientSideAdaptiveClipping(DifferentialPrivacyServerSideAdaptiveClipping):
    """The same, clipped by the clients with `adaptiveclipping_mod`, which tells in `norm_bit` what it did."""

    on_clients = True

    def _told(self, answer: FitRes) -> bool:
        if NORM_BIT not in answer.metrics:
            raise StrategyError(
                f"a client's metrics have no {NORM_BIT!r}", hint="give the ClientApp adaptiveclipping_mod"
            )
        return bool(answer.metrics[NORM_BIT])
