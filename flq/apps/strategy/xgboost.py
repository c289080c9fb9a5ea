"""Models of XGBoost: trees of all nodes together, and one node after the other."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from logging import DEBUG, ERROR
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from flq.apps.logger import log
from flq.apps.strategy.aggregate import MetricsAggregation
from flq.apps.strategy.fedavg import FedAvg
from flq.apps.strategy.fold import NoUsableReply, Reply, Unusable
from flq.apps.strategy.grids import MessageGrid
from flq.apps.strategy.options import RoundOptions
from flq.apps.strategy.robust import GatheringStrategy, each_layer
from flq.errors import StrategyError
from flq.wire.message import Message
from flq.wire.records import Array, ArrayRecord, ConfigRecord, MetricRecord


class FedXgbBagging(FedAvg):
    """Adds the trees of all replies to the model: each round boosts by a forest with trees of every node.

    For models of XGBoost (Chen and Guestrin (2016), "XGBoost: A Scalable Tree Boosting System",
    https://arxiv.org/abs/1603.02754) in its JSON format, `bytes(booster.save_raw("json"))` as one uint8 array.
    A node trains on from the model that it gets and returns only its new trees (`booster[-n:]`); from an empty array it
    trains a first model. Replies are added in the order of their tasks; weights count for the metrics only. The
    parameters are those of `FedAvg`.
    """

    current_bst: bytes | None = None
    """The model that the nodes got in this round, as JSON; empty before the first trees."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: MessageGrid
    ) -> Iterable[Message]:
        """As FedAvg does; keeps the model, which trees are added to."""
        if len(arrays) != 1:
            raise StrategyError(f"a model of XGBoost is one array of bytes; this one has {len(arrays)} arrays")
        self.current_bst = next(iter(arrays.values())).view().tobytes()
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The model with all trees, and the weighted mean of each metric. Raises `StrategyError` as FedAvg does."""
        return self._folded(server_round, replies, lambda: Forest(self.current_bst or b""), shapes=False)


class Forest:
    """The trees of models that are added one after the other, behind those of `model`."""

    def __init__(self, model: bytes) -> None:
        self._key = "0"
        try:
            self._model = _parsed(model) if model else None
        except Unusable as why:
            raise StrategyError(f"the model that trees are to be added to is none: {why}") from why

    def add(self, arrays: Any, _measure: float, /) -> None:
        """Add the trees of a model. Raises `Unusable` if it is none."""
        if len(arrays) != 1:
            raise Unusable(f"it has {len(arrays)} arrays; a model of XGBoost is one array of bytes")
        ((self._key, array),) = arrays.items()
        model = _parsed(_bytes(array))
        try:
            if self._model is None:
                _booster(model)
                self._model = model
            else:
                _append(_booster(self._model), _booster(model))
        except (KeyError, TypeError, ValueError, IndexError) as exc:
            raise Unusable(f"it is no tree model of XGBoost: {type(exc).__name__} {exc}") from exc

    def finish(self) -> ArrayRecord:
        """The model with all trees."""
        content = b"" if self._model is None else json.dumps(self._model).encode()
        return ArrayRecord({self._key: Array.owning(np.frombuffer(content, np.uint8))})


def _bytes(array: NDArray[Any]) -> bytes:
    if array.dtype != np.uint8:
        raise Unusable(f"its array is of dtype {array.dtype}; a model of XGBoost is one array of uint8")
    return array.tobytes()


def _parsed(model: bytes) -> Any:
    try:
        return json.loads(model)
    except ValueError as exc:
        raise Unusable(f"it is no model of XGBoost in JSON: {exc}") from exc


def _booster(model: Any) -> dict[str, Any]:
    booster: dict[str, Any] = model["learner"]["gradient_booster"]["model"]
    trees, told = booster["trees"], int(booster["gbtree_model_param"]["num_trees"])
    if len(trees) != told or len(booster["tree_info"]) != told:
        raise ValueError(f"it says that it has {told} trees, and has {len(trees)}")
    return booster


def _append(model: dict[str, Any], new: dict[str, Any]) -> None:
    """Add the trees of `new`, numbered on, and its rounds of boosting."""
    trees = model["trees"]
    count = len(trees)
    rounds, ends = [int(end) for end in new["iteration_indptr"][1:]], model["iteration_indptr"]
    trees += [{**tree, "id": count + number} for number, tree in enumerate(new["trees"])]
    model["tree_info"] += new["tree_info"]
    last = int(ends[-1])
    ends += [last + end for end in rounds]
    model["gbtree_model_param"]["num_trees"] = str(len(trees))


class FedXgbCyclic(GatheringStrategy):
    """Sends the model to one node a round, in turn, and takes what it returns as the new one.

    For models of XGBoost (Chen and Guestrin (2016), "XGBoost: A Scalable Tree Boosting System",
    https://arxiv.org/abs/1603.02754) that each node boosts further, and for whatever else is trained from node to
    node. The turns go by node id among the nodes that are online. A node that fails, or whose reply cannot be used, is
    passed over: the log says so, and the model stays as it is.

    Parameters
    ----------
    fraction_train, fraction_evaluate
        1, or 0 to leave the step out.

    All others are those of `FedAvg`; as in Flower (flwr) there are no `min_train_nodes` and `min_evaluate_nodes`.

    """

    def __init__(  # noqa: PLR0917 - the order of Flower (flwr), for apps that give them by position
        self,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_available_nodes: int = 2,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: MetricsAggregation | None = None,
        evaluate_metrics_aggr_fn: MetricsAggregation | None = None,
        **options: Unpack[RoundOptions],
    ) -> None:
        for name, fraction in (("fraction_train", fraction_train), ("fraction_evaluate", fraction_evaluate)):
            if fraction not in {0, 1}:
                raise ValueError(f"{name} is {fraction}; it must be 1 or 0, since one node takes its turn at a time")
        super().__init__(
            fraction_train,
            fraction_evaluate,
            1,
            1,
            min_available_nodes,
            weighted_by_key,
            arrayrecord_key,
            configrecord_key,
            train_metrics_aggr_fn,
            evaluate_metrics_aggr_fn,
            **options,
        )

    def _sample(self, grid: MessageGrid, server_round: int, kind: str, fraction: float, at_least: int) -> list[int]:  # noqa: ARG002
        nodes = self._online(grid, at_least)
        turn = nodes[(server_round - 1) % len(nodes)]
        log(DEBUG, "round %d: %s of %d nodes has its turn to %s", server_round, self._names[turn], len(nodes), kind)
        return [turn]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The model of the node whose turn it was, and its metrics; None if its reply cannot be used."""
        try:
            return super().aggregate_train(server_round, replies)
        except NoUsableReply as exc:
            log(ERROR, "%s; the model stays as it is", exc)
            return None, None

    def combine(self, replies: Sequence[Reply]) -> tuple[ArrayRecord | None, Sequence[Reply]]:
        """The first model."""
        arrays = {key: Array.owning(layers[0]) for key, layers in each_layer(replies[:1])}
        return ArrayRecord(arrays), replies[:1]
