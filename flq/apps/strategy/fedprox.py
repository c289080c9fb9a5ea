"""Federated averaging with a proximal term at the clients."""

from __future__ import annotations

from collections.abc import Iterable
from logging import INFO, WARNING
from typing import Unpack

from flq.apps.logger import log
from flq.apps.strategy.aggregate import MetricsAggregation
from flq.apps.strategy.fedavg import FedAvg
from flq.apps.strategy.grids import MessageGrid
from flq.apps.strategy.options import RoundOptions
from flq.wire.message import Message
from flq.wire.records import ArrayRecord, ConfigRecord


class FedProx(FedAvg):
    """FedAvg whose nodes are told to stay close to the model that they got.

    Li et al. (2020), "Federated Optimization in Heterogeneous Networks", https://arxiv.org/abs/1812.06127. The server
    averages; it is the ClientApp that adds (mu / 2) ||w - w_t||^2 to its loss, with mu from the config's `proximal-mu`
    and w_t the model of the message. A reply of a node that did only a part of its work is averaged like any other.

    Parameters
    ----------
    proximal_mu
        The weight of the proximal term; 0 is FedAvg.

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
        proximal_mu: float = 0.0,
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
        self.proximal_mu = proximal_mu

    def summary(self) -> None:
        """Log the settings of the strategy."""
        if self.proximal_mu == 0:
            log(WARNING, "proximal_mu is 0, with which FedProx is FedAvg")
        log(INFO, "proximal_mu %g", self.proximal_mu)
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: MessageGrid
    ) -> Iterable[Message]:
        """As FedAvg does, with `proximal-mu` in the config."""
        config = ConfigRecord({**config, "proximal-mu": self.proximal_mu})
        return super().configure_train(server_round, arrays, config, grid)
