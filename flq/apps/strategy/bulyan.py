"""Choosing replies, then elements: Bulyan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from logging import INFO, WARNING
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from flq.apps.logger import log
from flq.apps.strategy.aggregate import MetricsAggregation
from flq.apps.strategy.fold import Reply
from flq.apps.strategy.krum import lowest_scores, squared_distances
from flq.apps.strategy.options import RoundOptions
from flq.apps.strategy.robust import GatheringStrategy, Rows, each_layer, mean, median_of_sorted, sort
from flq.errors import StrategyError
from flq.wire.records import ArrayRecord, RecordDict

SelectionRule = Callable[[list[RecordDict], int, int], list[RecordDict]]
"""Chooses some of the contents of replies; it is told how many nodes may lie, and how many contents to return."""


class Bulyan(GatheringStrategy):
    """Chooses replies by Krum, and makes each element the mean of those of them that are closest to their median.

    El Mhamdi et al. (2018), "The Hidden Vulnerability of Distributed Learning in Byzantium",
    https://arxiv.org/abs/1802.07927. Of n replies of which f lie it chooses n - 2f, and of each element of these the
    n - 4f that are closest to the median; weights do not count. That needs n >= 4f + 3: with fewer replies the model
    stays as it is, and the log says so. Metrics are those of the chosen replies.

    Parameters
    ----------
    num_malicious_nodes
        f, how many nodes may lie.
    selection_rule
        Chooses the replies: a function of their contents, f and n - 2f that returns some of these contents. Unless
        given, those with the lowest scores of `MultiKrum` are chosen at once, as in Flower (flwr);
        `select_krum_repeatedly` chooses one at a time among those that are left, as in the paper.

    All others are those of `FedAvg`.

    """

    def __init__(  # noqa: PLR0917 - the order of Flower (flwr), for apps that give them by position
        self,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
        num_malicious_nodes: int = 0,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: MetricsAggregation | None = None,
        evaluate_metrics_aggr_fn: MetricsAggregation | None = None,
        selection_rule: SelectionRule | None = None,
        **options: Unpack[RoundOptions],
    ) -> None:
        if num_malicious_nodes < 0:
            raise ValueError("num_malicious_nodes is 0 or more")
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
        self.num_malicious_nodes = num_malicious_nodes
        self.selection_rule = selection_rule

    def summary(self) -> None:
        """Log the settings of the strategy."""
        rule = "Multi-Krum" if self.selection_rule is None else getattr(self.selection_rule, "__name__", "its own rule")
        log(INFO, "replies are chosen by %s; %d nodes may lie", rule, self.num_malicious_nodes)
        super().summary()

    def combine(self, replies: Sequence[Reply]) -> tuple[ArrayRecord | None, Sequence[Reply]]:
        """The new model, and the chosen replies; no model if there are too few replies."""
        liars, count = self.num_malicious_nodes, len(replies)
        if count < 4 * liars + 3:
            _look_through(replies)
            told = "%d replies do not suffice for %d liars: Bulyan needs %d (4f + 3); the model stays as it is"
            log(WARNING, told, count, liars, 4 * liars + 3)
            return None, ()
        chosen = self._chosen(replies, count - 2 * liars)
        kept = len(chosen) - 2 * liars
        if kept < 1:
            raise StrategyError(
                f"the selection_rule of Bulyan has chosen {len(chosen)} of {count} replies; {count - 2 * liars} are"
                " asked for"
            )
        return self.by_element(chosen, lambda rows: closest_mean(sort(rows), kept)), chosen

    def _chosen(self, replies: Sequence[Reply], count: int) -> list[Reply]:
        if self.selection_rule is None:
            distances = squared_distances(replies, threads=self.threads)
            return [replies[index] for index in lowest_scores(distances, self.num_malicious_nodes, count)]
        _look_through(replies)
        contents = [reply.whole() for reply in replies]
        position = {id(content): index for index, content in enumerate(contents)}
        chosen = self.selection_rule(contents, self.num_malicious_nodes, count)
        if not all(id(content) in position for content in chosen):
            raise StrategyError(
                "the selection_rule of Bulyan has returned something else than some of the contents that it was given"
            )
        return [replies[position[id(content)]] for content in chosen]


def _look_through(replies: Sequence[Reply]) -> None:
    """Read the replies. Raises `UnusableReply`."""
    for _ in each_layer(replies):
        pass


def closest_mean(rows: Rows, count: int) -> NDArray[Any]:
    """Of rows sorted element by element the mean of the `count` that are closest to the median.

    These lie side by side; where two windows are equally close, the lower one counts.
    """
    middle = median_of_sorted(rows)
    starts = range(len(rows) - count + 1)
    reach = np.stack([np.maximum(middle - rows[start], rows[start + count - 1] - middle) for start in starts])
    best = np.argmin(reach, axis=0)
    stacked = np.stack(rows)
    return mean([np.take_along_axis(stacked, (best + offset)[None], axis=0)[0] for offset in range(count)])
