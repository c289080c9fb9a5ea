"""Robust statistics of each element: the median and the trimmed mean."""

from __future__ import annotations

from collections.abc import Sequence
from logging import INFO
from typing import Unpack

from flq.apps.logger import log
from flq.apps.strategy.aggregate import MetricsAggregation
from flq.apps.strategy.fold import Reply
from flq.apps.strategy.options import RoundOptions
from flq.apps.strategy.robust import GatheringStrategy, mean, median_of_sorted, sort
from flq.wire.records import ArrayRecord

_HALF = 0.5


class FedMedian(GatheringStrategy):
    """Makes each element of the new model the median of those of the replies; weights do not count.

    Yin et al. (2018), "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
    https://arxiv.org/abs/1803.01498, algorithm 1, option I. As long as fewer than half of the nodes lie, each element
    lies between those of honest nodes. The parameters are those of `FedAvg`.
    """

    def combine(self, replies: Sequence[Reply]) -> tuple[ArrayRecord | None, Sequence[Reply]]:
        """The medians, and all replies."""
        return self.by_element(replies, lambda rows: median_of_sorted(sort(rows))), replies


class FedTrimmedAvg(GatheringStrategy):
    """Makes each element of the new model the mean of the replies' without the largest and the smallest ones.

    Yin et al. (2018), "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
    https://arxiv.org/abs/1803.01498, algorithm 1, option II. Weights do not count. As long as no more nodes lie than
    are cut off at one end, each element lies between those of honest nodes.

    Parameters
    ----------
    beta
        Which part of the replies is cut off at each end, rounded down to whole replies; from 0 on, less than 0.5.

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
        beta: float = 0.2,
        **options: Unpack[RoundOptions],
    ) -> None:
        if not 0 <= beta < _HALF:
            raise ValueError(f"beta is {beta}; it must be in [0, 0.5), since it is cut off at both ends")
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
        self.beta = beta

    def summary(self) -> None:
        """Log the settings of the strategy."""
        log(INFO, "trimmed mean: %s of the replies are cut off at each end", f"{self.beta:.0%}")
        super().summary()

    def combine(self, replies: Sequence[Reply]) -> tuple[ArrayRecord | None, Sequence[Reply]]:
        """The trimmed means, and all replies."""
        cut = int(self.beta * len(replies))
        return self.by_element(replies, lambda rows: mean(sort(rows)[cut : len(rows) - cut])), replies
