"""Replies to strategies, and nodes that make them, without a federation."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from flq.apps import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flq.apps.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
)
from flq.apps.strategy.strategy import Strategy

SYNCHRONOUS: dict[str, Any] = {
    "FedAvg": FedAvg,
    "FedAvgM": lambda **options: FedAvgM(server_learning_rate=0.5, server_momentum=0.9, **options),
    "FedProx": lambda **options: FedProx(proximal_mu=0.1, **options),
    "FedMedian": FedMedian,
    "FedTrimmedAvg": FedTrimmedAvg,
    "FedAdagrad": FedAdagrad,
    "FedAdam": FedAdam,
    "FedYogi": FedYogi,
    "QFedAvg": lambda **options: QFedAvg(0.1, q=0.5, **options),
    "MultiKrum": lambda **options: MultiKrum(num_nodes_to_select=2, **options),
    "Krum": Krum,
    "Bulyan": Bulyan,
}
"""How to make each strategy for numbers that asks several nodes in a round."""


class Nodes:
    """A Grid with nodes online that nothing can be sent to."""

    def __init__(self, count: int = 10) -> None:
        self.ids = list(range(2, 2 + count))

    def get_node_ids(self) -> Sequence[int]:
        return self.ids

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str | None]:
        raise AssertionError(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise AssertionError(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise AssertionError(messages, timeout)


def record(*arrays: Any, dtype: Any = np.float32) -> ArrayRecord:
    return ArrayRecord([np.asarray(array, dtype) for array in arrays])


def request(node_id: int) -> Message:
    return Message(RecordDict(), dst_node_id=node_id, message_type="train")


def reply(node_id: int, arrays: ArrayRecord, **metrics: Any) -> Message:
    values = {"num-examples": 1, "train_loss": 1.0, **{key.replace("__", "-"): v for key, v in metrics.items()}}
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord(values)}), reply_to=request(node_id))


def replies(rows: Any, weights: Sequence[float] | None = None, losses: Sequence[float] | None = None) -> Any:
    """A reply for each row, which is the one array of its model."""
    return [
        reply(
            2 + index,
            record(row),
            num__examples=1 if weights is None else weights[index],
            train_loss=1.0 if losses is None else float(losses[index]),
        )
        for index, row in enumerate(rows)
    ]


def failed(node_id: int, reason: str = "boom", code: int = 2) -> Message:
    return Message(Error(code, reason), reply_to=request(node_id))


def train(
    strategy: Strategy, start: ArrayRecord, answers: Iterable[Message], server_round: int = 1
) -> ArrayRecord | None:
    """One round of training from `start`."""
    list(strategy.configure_train(server_round, start, ConfigRecord(), Nodes()))
    return strategy.aggregate_train(server_round, answers)[0]


def values(arrays: ArrayRecord | None) -> np.ndarray:
    """The one array of a model, in float64."""
    assert arrays is not None
    (array,) = arrays.to_numpy_ndarrays()
    return np.asarray(array, np.float64)


def xgboost_model(trees: Sequence[Mapping[str, Any]], *, parallel: int = 1, rounds: int | None = None) -> np.ndarray:
    """A model as XGBoost writes it in JSON, with what matters to adding trees."""
    rounds = len(trees) // parallel if rounds is None else rounds
    model = {
        "learner": {
            "gradient_booster": {
                "model": {
                    "gbtree_model_param": {"num_parallel_tree": str(parallel), "num_trees": str(len(trees))},
                    "iteration_indptr": [number * parallel for number in range(rounds + 1)],
                    "tree_info": [0] * len(trees),
                    "trees": [{"id": number, **tree} for number, tree in enumerate(trees)],
                },
                "name": "gbtree",
            }
        },
        "version": [2, 0, 0],
    }
    return np.frombuffer(json.dumps(model).encode(), np.uint8)
