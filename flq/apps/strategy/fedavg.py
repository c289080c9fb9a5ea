"""Federated averaging."""

from __future__ import annotations

from collections.abc import Iterable
from logging import DEBUG, ERROR, INFO

from flq.apps.logger import log
from flq.apps.strategy.aggregate import (
    ArrayKinds,
    Fold,
    MetricsAggregation,
    aggregate_metricrecords,
    array_kinds,
)
from flq.apps.strategy.grids import MessageGrid
from flq.apps.strategy.sampling import await_nodes, choose
from flq.apps.strategy.strategy import Strategy
from flq.errors import StrategyError
from flq.wire.message import Message, MessageType
from flq.wire.records import ArrayRecord, ConfigRecord, MetricRecord, RecordDict


class FedAvg(Strategy):
    """Makes the new model the mean of those that the nodes return, weighted by their numbers of examples.

    McMahan et al. (2017), "Communication-Efficient Learning of Deep Networks from Decentralized Data",
    https://arxiv.org/abs/1602.05629. Replies are folded in the order of their tasks, one at a time; see `WeightedMean`
    for the precision. A reply to training has exactly one ArrayRecord and exactly one MetricRecord, which contains the
    weight. A reply that cannot be used is logged with its node and the reason, and left out; a round of training in
    which none can be used ends the run.

    Parameters
    ----------
    fraction_train, fraction_evaluate
        Which part of the nodes that are online is chosen for a round; 0 leaves the step out.
    min_train_nodes, min_evaluate_nodes
        How many nodes are chosen at least.
    min_available_nodes
        How many nodes must be online for a round to begin.
    weighted_by_key
        The metric that replies are weighted by.
    arrayrecord_key, configrecord_key
        The names of the records in the messages to the nodes. The config tells the round as `server-round`.
    train_metrics_aggr_fn, evaluate_metrics_aggr_fn
        Make one MetricRecord of the replies' metric and config records, instead of the weighted mean of each metric.

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
    ) -> None:
        self.fraction_train = fraction_train
        self.fraction_evaluate = fraction_evaluate
        self.min_train_nodes = min_train_nodes
        self.min_evaluate_nodes = min_evaluate_nodes
        self.min_available_nodes = min_available_nodes
        self.weighted_by_key = weighted_by_key
        self.arrayrecord_key = arrayrecord_key
        self.configrecord_key = configrecord_key
        self.train_metrics_aggr_fn = train_metrics_aggr_fn
        self.evaluate_metrics_aggr_fn = evaluate_metrics_aggr_fn
        self._sent: ArrayKinds | None = None
        self._names: dict[int, str] = {}

    def summary(self) -> None:
        """Log the settings of the strategy."""
        log(
            INFO,
            "training by %s of the nodes, at least %d; evaluation by %s, at least %d; replies count by %r",
            f"{self.fraction_train:.0%}",
            self.min_train_nodes,
            f"{self.fraction_evaluate:.0%}",
            self.min_evaluate_nodes,
            self.weighted_by_key,
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: MessageGrid
    ) -> Iterable[Message]:
        """The same message to each chosen node: the model and the config with the round's number."""
        self._sent = array_kinds(arrays)
        if self.fraction_train == 0:
            return []
        nodes = self._sample(grid, server_round, "train", self.fraction_train, self.min_train_nodes)
        return self._messages(server_round, arrays, config, nodes, MessageType.TRAIN)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: MessageGrid
    ) -> Iterable[Message]:
        """The same message to each chosen node: the model and the config with the round's number."""
        if self.fraction_evaluate == 0:
            return []
        nodes = self._sample(grid, server_round, "evaluate", self.fraction_evaluate, self.min_evaluate_nodes)
        return self._messages(server_round, arrays, config, nodes, MessageType.EVALUATE)

    def _sample(self, grid: MessageGrid, server_round: int, kind: str, fraction: float, at_least: int) -> list[int]:
        if not 0 < fraction <= 1:
            raise StrategyError(f"fraction_{kind} is {fraction}; it must lie between 0 and 1")
        self._names = await_nodes(grid, max(self.min_available_nodes, at_least), timeout=self.patience)
        nodes = sorted(self._names)
        seed = None if self.seed is None else f"{self.seed}/{server_round}/{kind}"
        chosen = choose(nodes, max(int(len(nodes) * fraction), at_least), seed=seed)
        log(DEBUG, "round %d: %d of %d nodes %s", server_round, len(chosen), len(nodes), kind)
        return chosen

    def _messages(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, nodes: list[int], message_type: str
    ) -> list[Message]:
        content = RecordDict(
            {
                self.arrayrecord_key: arrays,
                self.configrecord_key: ConfigRecord({**config, "server-round": server_round}),
            }
        )
        group = str(server_round)
        return [Message(content, node_id, message_type, group_id=group) for node_id in nodes]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The weighted mean of the models, and of each metric.

        Raises `StrategyError` if there are replies but none can be used.
        """
        fold = Fold(self.weighted_by_key, with_arrays=True, expected=self._sent, names=self._names)
        for reply in replies:
            fold.add(reply)
        arrays, contents = fold.finish()
        if contents:
            return arrays, self._metrics(self.train_metrics_aggr_fn, contents)
        if fold.refused:
            raise StrategyError(
                f"round {server_round}: none of {len(fold.refused)} replies can be used: {fold.reasons()}",
                hint="flq logs shows what the nodes have printed",
            )
        return None, None

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The weighted mean of each metric; None if no reply can be used."""
        fold = Fold(self.weighted_by_key, with_arrays=False, names=self._names)
        for reply in replies:
            fold.add(reply)
        _, contents = fold.finish()
        if contents:
            return self._metrics(self.evaluate_metrics_aggr_fn, contents)
        if fold.refused:
            log(ERROR, "round %d: no node's evaluation can be used", server_round)
        return None

    def _metrics(self, aggregation: MetricsAggregation | None, contents: list[RecordDict]) -> MetricRecord:
        return (aggregation or aggregate_metricrecords)(contents, self.weighted_by_key)
