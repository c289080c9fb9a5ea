"""Federated averaging."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from logging import DEBUG, ERROR, INFO
from typing import Any

from flq.apps.blocks import available_threads
from flq.apps.logger import log
from flq.apps.strategy.aggregate import MetricsAggregation, aggregate_metricrecords
from flq.apps.strategy.fold import ArrayKinds, Combiner, Fold, NoUsableReply, array_kinds
from flq.apps.strategy.grids import MessageGrid
from flq.apps.strategy.mean import WeightedMean
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
    which fewer than `min_replies` can be used ends the run.

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
    round_deadline
        How long a round waits for replies, in seconds, if that is shorter than the `timeout` of `start`. What is
        missing then is cancelled.
    min_replies
        How many replies to training must be usable.
    over_select
        Ask so many more nodes than are needed, as in Bonawitz et al. (2019), "Towards Federated Learning at Scale",
        https://arxiv.org/abs/1902.01046: 0.3 asks 13 for 10 replies. The round is over with the 10th; the others are
        logged as late, and not applied.
    node_labels
        Choose only nodes that have all of these labels, with these values.
    selection_seed
        Choose the same nodes in every run that has the same nodes; otherwise it follows from the seed of the run.
    float64_accumulator
        Add up in float64 where float32 would do for the models.
    threads
        How many threads work on large arrays; all processors of this process unless given. The result does not
        depend on it.

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
        *,
        round_deadline: float | None = None,
        min_replies: int = 1,
        over_select: float = 0.0,
        node_labels: Mapping[str, str] | None = None,
        selection_seed: int | None = None,
        float64_accumulator: bool = False,
        threads: int | None = None,
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
        self.round_deadline = round_deadline
        self.min_replies = min_replies
        self.over_select = over_select
        self.node_labels = node_labels
        self.selection_seed = selection_seed
        self.float64_accumulator = float64_accumulator
        self.threads = available_threads() if threads is None else threads
        self.used = 0
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
        self._sent, self.enough = array_kinds(arrays), None
        if self.fraction_train == 0:
            return []
        nodes = self._sample(grid, server_round, "train", self.fraction_train, self.min_train_nodes)
        return self._messages(server_round, arrays, config, nodes, MessageType.TRAIN)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: MessageGrid
    ) -> Iterable[Message]:
        """The same message to each chosen node: the model and the config with the round's number."""
        self.enough = None
        if self.fraction_evaluate == 0:
            return []
        nodes = self._sample(grid, server_round, "evaluate", self.fraction_evaluate, self.min_evaluate_nodes)
        return self._messages(server_round, arrays, config, nodes, MessageType.EVALUATE)

    def _sample(self, grid: MessageGrid, server_round: int, kind: str, fraction: float, at_least: int) -> list[int]:
        if not 0 < fraction <= 1:
            raise StrategyError(f"fraction_{kind} is {fraction}; it must lie between 0 and 1")
        nodes = self._online(grid, at_least)
        wanted = max(int(len(nodes) * fraction), at_least)
        asked = min(self._over_selected(wanted), len(nodes))
        seed = self.seed if self.selection_seed is None else str(self.selection_seed)
        chosen = choose(nodes, asked, seed=None if seed is None else f"{seed}/{server_round}/{kind}")
        self.enough = wanted if wanted < len(chosen) else None
        log(DEBUG, "round %d: %d of %d nodes %s", server_round, len(chosen), len(nodes), kind)
        return chosen

    def _online(self, grid: MessageGrid, at_least: int) -> list[int]:
        """The nodes that may be chosen, in order, once there are enough of them."""
        needed = max(self.min_available_nodes, at_least)
        self._names = await_nodes(grid, needed, timeout=self.patience, labels=self.node_labels)
        return sorted(self._names)

    def _over_selected(self, wanted: int) -> int:
        if not math.isfinite(self.over_select) or self.over_select < 0:
            raise StrategyError(f"over_select is {self.over_select}; 0.3 asks 13 nodes for 10 replies")
        # the rounding takes away what the multiplication adds: 10 * 1.1 is a little more than 11
        return math.ceil(round(wanted * (1 + self.over_select), 9))

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

        Raises `StrategyError` if there are replies, but too few can be used.
        """
        return self._folded(server_round, replies, self._mean, expected=self._sent)

    def _mean(self) -> WeightedMean:
        return WeightedMean(float64=self.float64_accumulator, threads=self.threads)

    def _folded(
        self, server_round: int, replies: Iterable[Message], combine: Callable[[], Combiner], **how: Any
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """What `combine` makes of the models, and the metrics; `how` are further arguments of `Fold`."""
        fold = Fold(
            self.weighted_by_key,
            with_arrays=True,
            combine=combine,
            names=self._names,
            enough=self.enough,
            held=isinstance(replies, Sequence),
            threads=self.threads,
            **how,
        )
        for reply in replies:
            fold.add(reply)
        arrays, contents = fold.finish()
        if not self.suffice(server_round, fold, len(contents)):
            return None, None
        return arrays, self._metrics(self.train_metrics_aggr_fn, contents)

    def suffice(self, server_round: int, fold: Fold, usable: int) -> bool:
        """Whether there is something to aggregate. Raises `NoUsableReply` if there are replies, but too few."""
        self.used = usable
        if usable >= max(self.min_replies, 1):
            return True
        if not usable and not fold.refused:
            return False
        if not usable:
            told = f"none of {len(fold.refused)} replies can be used: {fold.reasons()}"
        else:
            why = fold.reasons() or "no more have come in"
            told = f"{usable} replies can be used, and min_replies is {self.min_replies}: {why}"
        raise NoUsableReply(f"round {server_round}: {told}", hint="flq logs shows what the nodes have printed")

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The weighted mean of each metric; None if no reply can be used."""
        fold = Fold(self.weighted_by_key, with_arrays=False, names=self._names, enough=self.enough)
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
