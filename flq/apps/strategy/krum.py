"""Choosing the replies that lie closest to others: Krum and Multi-Krum."""

from __future__ import annotations

from collections.abc import Sequence
from logging import INFO, WARNING
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from flq.apps.blocks import BLOCK, Workers, blocks
from flq.apps.logger import log
from flq.apps.strategy.aggregate import MetricsAggregation
from flq.apps.strategy.fold import InconsistentReplies, Model, Reply, Unusable
from flq.apps.strategy.options import RoundOptions
from flq.apps.strategy.robust import GatheringStrategy, UnusableReply, each_layer
from flq.wire.records import ArrayRecord, RecordDict

Distances = NDArray[np.float64]
"""The squared distance of each pair of models: (n, n), symmetrical, 0 on the diagonal."""


class MultiKrum(GatheringStrategy):
    """Makes the new model the weighted mean of the replies that lie closest to others.

    Blanchard et al. (2017), "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
    https://papers.nips.cc/paper/6617. The score of a reply is the sum of its squared distances to the n - f - 2 others
    that are closest to it, with n replies of which f lie; those with the lowest scores are chosen, the earlier task
    first where scores are equal. What is proved of it holds for n >= 2f + 3. Metrics are those of the chosen ones.

    Parameters
    ----------
    num_malicious_nodes
        f, how many nodes may lie.
    num_nodes_to_select
        How many replies are chosen; 1 is Krum.

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
        num_nodes_to_select: int = 1,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: MetricsAggregation | None = None,
        evaluate_metrics_aggr_fn: MetricsAggregation | None = None,
        **options: Unpack[RoundOptions],
    ) -> None:
        if num_malicious_nodes < 0 or num_nodes_to_select < 1:
            raise ValueError("num_malicious_nodes is 0 or more, num_nodes_to_select 1 or more")
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
        self.num_nodes_to_select = num_nodes_to_select

    def summary(self) -> None:
        """Log the settings of the strategy."""
        log(
            INFO,
            "%d replies are chosen; %d nodes may lie",
            self.num_nodes_to_select,
            self.num_malicious_nodes,
        )
        super().summary()

    def combine(self, replies: Sequence[Reply]) -> tuple[ArrayRecord | None, Sequence[Reply]]:
        """The weighted mean of the chosen replies, and these."""
        liars = self.num_malicious_nodes
        if len(replies) < 2 * liars + 3 and liars:
            log(
                WARNING,
                "%d replies do not suffice for %d liars: Krum needs %d (2f + 3)",
                len(replies),
                liars,
                2 * liars + 3,
            )
        distances = squared_distances(replies, threads=self.threads)
        chosen = [replies[index] for index in lowest_scores(distances, liars, self.num_nodes_to_select)]
        return self.weighted_mean(chosen), chosen

    def weighted_mean(self, replies: Sequence[Reply]) -> ArrayRecord:
        """The mean of the models, counted by their weights. Raises `UnusableReply`."""
        folded = self._mean()
        for reply in replies:
            try:
                folded.add(Model(reply.arrays), reply.measure)
            except Unusable as why:
                raise UnusableReply(reply, str(why)) from why
        return folded.finish()


class Krum(MultiKrum):
    """Makes the new model the one reply that lies closest to others. See `MultiKrum`.

    Blanchard et al. (2017), "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
    https://papers.nips.cc/paper/6617.

    Parameters
    ----------
    num_malicious_nodes
        How many nodes may lie.

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
        **options: Unpack[RoundOptions],
    ) -> None:
        super().__init__(
            fraction_train,
            fraction_evaluate,
            min_train_nodes,
            min_evaluate_nodes,
            min_available_nodes,
            num_malicious_nodes,
            1,
            weighted_by_key,
            arrayrecord_key,
            configrecord_key,
            train_metrics_aggr_fn,
            evaluate_metrics_aggr_fn,
            **options,
        )


def squared_distances(replies: Sequence[Reply], *, threads: int = 1) -> Distances:
    """The squared distances of the models, in float64, array by array. Raises `UnusableReply`, `StrategyError`."""
    total, workers = np.zeros((len(replies), len(replies))), Workers(threads)
    for _, layers in each_layer(replies, workers):
        total += _layer_distances([layer.reshape(-1) for layer in layers], workers)
    workers.close()
    return total + total.T


def _layer_distances(layers: list[NDArray[Any]], workers: Workers) -> Distances:
    """The squared distances within one array, above the diagonal."""
    width = max(BLOCK // len(layers), 1)

    def work(part: slice) -> Distances:
        found = np.zeros((len(layers), len(layers)))
        for block in blocks(part, size=width):
            found += _pairs(np.stack([layer[block] for layer in layers]).astype(np.float64))
        return found

    return sum(workers.each_part(layers[0].size, work), start=np.zeros((len(layers), len(layers))))


def _pairs(rows: NDArray[np.float64]) -> Distances:
    """The squared distances of rows, above the diagonal: from their differences, which loses no digits."""
    found = np.zeros((len(rows), len(rows)))
    with np.errstate(over="ignore"):
        for index in range(len(rows) - 1):
            differences = rows[index + 1 :] - rows[index]
            found[index, index + 1 :] = np.einsum("ij,ij->i", differences, differences)
    return found


def lowest_scores(distances: Distances, liars: int, count: int) -> list[int]:
    """The `count` models with the lowest Krum scores, the lowest first, the earlier one first if they are equal."""
    closest = max(len(distances) - liars - 2, 1)
    others = distances + np.diag(np.full(len(distances), np.inf))  # no model is its own neighbour
    scores = np.sort(others, axis=1)[:, :closest].sum(axis=1)
    return [int(index) for index in np.argsort(scores, kind="stable")[:count]]


def select_multikrum(
    contents: list[RecordDict], num_malicious_nodes: int, num_nodes_to_select: int
) -> list[RecordDict]:
    """The contents of replies that `MultiKrum` chooses: a `selection_rule` for `Bulyan`.

    Each has one ArrayRecord; arrays have the same names and shapes in all.
    """
    chosen = lowest_scores(_distances_of(contents), num_malicious_nodes, num_nodes_to_select)
    return [contents[index] for index in chosen]


def select_krum_repeatedly(
    contents: list[RecordDict], num_malicious_nodes: int, num_nodes_to_select: int
) -> list[RecordDict]:
    """Choose by Krum, then by Krum among the rest, and so on: the `selection_rule` of the paper on Bulyan."""
    distances, left = _distances_of(contents), list(range(len(contents)))
    chosen: list[int] = []
    while left and len(chosen) < num_nodes_to_select:
        (best,) = lowest_scores(distances[np.ix_(left, left)], num_malicious_nodes, 1)
        chosen.append(left.pop(best))
    return [contents[index] for index in chosen]


def _distances_of(contents: Sequence[RecordDict]) -> Distances:
    """Raises `InconsistentReplies` if a model cannot be read or is not finite."""
    look = frozenset[Any](), frozenset[Any]()
    replies = [
        Reply(index, 1.0, name, arrays, RecordDict(), look)
        for index, content in enumerate(contents)
        for name, arrays in content.array_records.items()
    ]
    try:
        return squared_distances(replies)
    except UnusableReply as exc:
        raise InconsistentReplies(f"reply {exc.reply.node_id} cannot be used: {exc}") from exc
