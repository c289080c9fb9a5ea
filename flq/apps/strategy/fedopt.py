"""Adaptive optimisers at the server: FedAdagrad, FedAdam, FedYogi."""

from __future__ import annotations

import math
from abc import abstractmethod
from logging import INFO
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from flq.apps.logger import log
from flq.apps.strategy.aggregate import MetricsAggregation
from flq.apps.strategy.optimizer import Block, ServerOptimizer, Step
from flq.apps.strategy.options import RoundOptions
from flq.wire.records import ArrayRecord

_FIRST, _SECOND = "m", "v"


class FedOpt(ServerOptimizer):
    """What the adaptive optimisers share; they differ in how v follows the squared updates.

    Reddi et al. (2021), "Adaptive Federated Optimization", algorithm 2, https://arxiv.org/abs/2003.00295: with the
    update d = (mean of the replies) - x,

        m <- beta_1 m + (1 - beta_1) d,    v as the class says,    x <- x + eta m / (sqrt(v) + tau)

    element by element. m and v begin with 0, as in Flower (flwr); the paper lets v begin with at least tau^2. Both are
    committed with each round, so that a restarted run goes on with them.

    Parameters
    ----------
    eta
        The server's learning rate.
    eta_l
        The clients' learning rate. It is the ClientApp that trains by it; here it is only told in the log.
    beta_1, beta_2
        How much m and v keep from round to round.
    tau
        How little v adapts the step: the larger, the less.

    All others are those of `FedAvg`, by keyword only.

    """

    state_names = (_FIRST, _SECOND)

    def __init__(
        self,
        *,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: MetricsAggregation | None = None,
        evaluate_metrics_aggr_fn: MetricsAggregation | None = None,
        eta: float = 0.1,
        eta_l: float = 0.1,
        beta_1: float = 0.0,
        beta_2: float = 0.0,
        tau: float = 1e-3,
        **options: Unpack[RoundOptions],
    ) -> None:
        super().__init__(
            fraction_train,
            fraction_evaluate,
            min_train_nodes,
            min_evaluate_nodes,
            min_available_nodes,
            weighted_by_key,
            arrayrecord_key,
            configrecord_key,
            train_metrics_aggr_fn,
            evaluate_metrics_aggr_fn,
            **options,
        )
        self.eta = eta
        self.eta_l = eta_l
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.tau = tau

    @property
    def m_t(self) -> ArrayRecord | None:
        """The m after the last round; None before the first one."""
        return self._state.get(_FIRST)

    @property
    def v_t(self) -> ArrayRecord | None:
        """The v after the last round; None before the first one."""
        return self._state.get(_SECOND)

    def summary(self) -> None:
        """Log the settings of the strategy."""
        log(INFO, "server: eta %g, beta_1 %g, beta_2 %g, tau %g", self.eta, self.beta_1, self.beta_2, self.tau)
        log(INFO, "clients: eta_l %g", self.eta_l)
        super().summary()

    @abstractmethod
    def follow(self, second: NDArray[Any], squared: NDArray[Any]) -> None:
        """Let v, `second`, follow the squared updates in place; `squared` may be overwritten."""

    def learning_rate(self, server_round: int) -> float:  # noqa: ARG002 - FedAdam looks at it
        """The length of a step in this round."""
        return self.eta

    def step(self, server_round: int) -> Step:
        """How to step in this round."""
        rate = self.learning_rate(server_round)

        def step(block: Block) -> None:
            model, delta, first, second = (block[name] for name in ("model", "delta", _FIRST, _SECOND))
            first *= self.beta_1
            first += (1 - self.beta_1) * delta
            np.multiply(delta, delta, out=delta)
            self.follow(second, delta)
            np.sqrt(second, out=delta)
            delta += self.tau
            np.divide(first, delta, out=delta)
            delta *= rate
            np.add(model, delta, out=model)

        return step


class FedAdagrad(FedOpt):
    """v is the sum of all squared updates: v <- v + d^2, and m = d. See `FedOpt`.

    Reddi et al. (2021), "Adaptive Federated Optimization", algorithm 2, https://arxiv.org/abs/2003.00295.
    """

    def __init__(
        self,
        *,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: MetricsAggregation | None = None,
        evaluate_metrics_aggr_fn: MetricsAggregation | None = None,
        eta: float = 0.1,
        eta_l: float = 0.1,
        tau: float = 1e-3,
        **options: Unpack[RoundOptions],
    ) -> None:
        super().__init__(
            fraction_train=fraction_train,
            fraction_evaluate=fraction_evaluate,
            min_train_nodes=min_train_nodes,
            min_evaluate_nodes=min_evaluate_nodes,
            min_available_nodes=min_available_nodes,
            weighted_by_key=weighted_by_key,
            arrayrecord_key=arrayrecord_key,
            configrecord_key=configrecord_key,
            train_metrics_aggr_fn=train_metrics_aggr_fn,
            evaluate_metrics_aggr_fn=evaluate_metrics_aggr_fn,
            eta=eta,
            eta_l=eta_l,
            tau=tau,
            **options,
        )

    def follow(self, second: NDArray[Any], squared: NDArray[Any]) -> None:
        """To v + d^2."""
        second += squared


class FedAdam(FedOpt):
    """v is a decaying mean of the squared updates: v <- beta_2 v + (1 - beta_2) d^2. See `FedOpt`.

    Reddi et al. (2021), "Adaptive Federated Optimization", algorithm 2, https://arxiv.org/abs/2003.00295. The step of
    round t is corrected for m and v having begun with 0, as in Kingma and Ba (2015), "Adam: A Method for Stochastic
    Optimization", https://arxiv.org/abs/1412.6980: its length is eta sqrt(1 - beta_2^(t + 1)) / (1 - beta_1^(t + 1)),
    with the t + 1 of Flower (flwr).
    """

    def __init__(
        self,
        *,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: MetricsAggregation | None = None,
        evaluate_metrics_aggr_fn: MetricsAggregation | None = None,
        eta: float = 0.1,
        eta_l: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        tau: float = 1e-3,
        **options: Unpack[RoundOptions],
    ) -> None:
        super().__init__(
            fraction_train=fraction_train,
            fraction_evaluate=fraction_evaluate,
            min_train_nodes=min_train_nodes,
            min_evaluate_nodes=min_evaluate_nodes,
            min_available_nodes=min_available_nodes,
            weighted_by_key=weighted_by_key,
            arrayrecord_key=arrayrecord_key,
            configrecord_key=configrecord_key,
            train_metrics_aggr_fn=train_metrics_aggr_fn,
            evaluate_metrics_aggr_fn=evaluate_metrics_aggr_fn,
            eta=eta,
            eta_l=eta_l,
            beta_1=beta_1,
            beta_2=beta_2,
            tau=tau,
            **options,
        )

    def learning_rate(self, server_round: int) -> float:
        """The length of a step in this round."""
        power = server_round + 1
        return self.eta * math.sqrt(1 - self.beta_2**power) / (1 - self.beta_1**power)

    def follow(self, second: NDArray[Any], squared: NDArray[Any]) -> None:
        """To beta_2 v + (1 - beta_2) d^2."""
        second *= self.beta_2
        squared *= 1 - self.beta_2
        second += squared


class FedYogi(FedOpt):
    """v moves to the squared updates by steps of their size: v <- v - (1 - beta_2) d^2 sign(v - d^2). See `FedOpt`.

    Reddi et al. (2021), "Adaptive Federated Optimization", algorithm 2, https://arxiv.org/abs/2003.00295, after Zaheer
    et al. (2018), "Adaptive Methods for Nonconvex Optimization".
    """

    def __init__(
        self,
        *,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: MetricsAggregation | None = None,
        evaluate_metrics_aggr_fn: MetricsAggregation | None = None,
        eta: float = 0.01,
        eta_l: float = 0.0316,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        tau: float = 1e-3,
        **options: Unpack[RoundOptions],
    ) -> None:
        super().__init__(
            fraction_train=fraction_train,
            fraction_evaluate=fraction_evaluate,
            min_train_nodes=min_train_nodes,
            min_evaluate_nodes=min_evaluate_nodes,
            min_available_nodes=min_available_nodes,
            weighted_by_key=weighted_by_key,
            arrayrecord_key=arrayrecord_key,
            configrecord_key=configrecord_key,
            train_metrics_aggr_fn=train_metrics_aggr_fn,
            evaluate_metrics_aggr_fn=evaluate_metrics_aggr_fn,
            eta=eta,
            eta_l=eta_l,
            beta_1=beta_1,
            beta_2=beta_2,
            tau=tau,
            **options,
        )

    def follow(self, second: NDArray[Any], squared: NDArray[Any]) -> None:
        """To v - (1 - beta_2) d^2 sign(v - d^2)."""
        direction = np.sign(second - squared)
        squared *= 1 - self.beta_2
        squared *= direction
        second -= squared
