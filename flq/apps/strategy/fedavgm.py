"""Federated averaging with momentum at the server."""

from __future__ import annotations

from collections.abc import Iterable
from logging import INFO
from typing import Unpack

import numpy as np

from flq.apps.logger import log
from flq.apps.strategy.aggregate import MetricsAggregation
from flq.apps.strategy.fedavg import FedAvg
from flq.apps.strategy.optimizer import Block, ServerOptimizer, Step
from flq.apps.strategy.options import RoundOptions
from flq.wire.message import Message
from flq.wire.records import ArrayRecord, MetricRecord

_MOMENTUM = "momentum"


class FedAvgM(ServerOptimizer):
    """Steps along a decaying sum of the rounds' updates.

    Hsu et al. (2019), "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification",
    https://arxiv.org/abs/1909.06335: with the update d = (mean of the replies) - w, v <- beta v + d and
    w <- w + lr v. v is committed with each round.

    Parameters
    ----------
    server_learning_rate
        lr, the length of a step.
    server_momentum
        beta, how much of the former updates is kept. With 0 and a learning rate of 1 it is FedAvg.

    All others are those of `FedAvg`.

    """

    def __init__(  # noqa: PLR0917 - the order of Flower (flwr), for apps that give them by position
        self,
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
        server_learning_rate: float = 1.0,
        server_momentum: float = 0.0,
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
        self.server_learning_rate = server_learning_rate
        self.server_momentum = server_momentum
        self.state_names = (_MOMENTUM,) if server_momentum else ()

    @property
    def momentum_vector(self) -> ArrayRecord | None:
        """The v after the last round; None before the first one, and without momentum."""
        return self._state.get(_MOMENTUM)

    def summary(self) -> None:
        """Log the settings of the strategy."""
        log(INFO, "server: learning rate %g, momentum %g", self.server_learning_rate, self.server_momentum)
        super().summary()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The model after the step, and the weighted mean of each metric. Raises `StrategyError` as FedAvg does."""
        if self.server_momentum == 0 and self.server_learning_rate == 1:
            return FedAvg.aggregate_train(self, server_round, replies)
        return super().aggregate_train(server_round, replies)

    def step(self, server_round: int) -> Step:  # noqa: ARG002 - it is the same in all rounds
        """How to step."""
        return self._step

    def _step(self, block: Block) -> None:
        update = block["delta"]
        if self.state_names:
            momentum = block[_MOMENTUM]
            momentum *= self.server_momentum
            momentum += update
            update[:] = momentum
        update *= self.server_learning_rate
        np.add(block["model"], update, out=block["model"])
