"""Trees of all nodes together."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from flq.apps import ArrayRecord
from flq.apps.strategy import FedXgbBagging
from tests.unit.strategy_replies import reply, train, xgboost_model


def forest(*models: np.ndarray, start: np.ndarray | None = None, key: str = "0") -> Any:
    """What becomes of `start` and the models of some nodes."""
    first = ArrayRecord([np.array([], np.uint8) if start is None else start])
    answers = [reply(2 + number, ArrayRecord([model])) for number, model in enumerate(models)]
    new = train(FedXgbBagging(), first, answers)
    assert new is not None
    assert [(name, array.dtype) for name, array in new.items()] == [(key, "uint8")]
    return json.loads(new[key].numpy().tobytes())["learner"]["gradient_booster"]["model"]


def leaves(model: Any) -> list[Any]:
    return [tree["leaf"] for tree in model["trees"]]


def test_trees_are_added_in_the_order_of_the_replies_and_numbered_on() -> None:
    model = forest(xgboost_model([{"leaf": "b"}]), xgboost_model([{"leaf": "c"}]), start=xgboost_model([{"leaf": "a"}]))
    assert leaves(model) == ["a", "b", "c"]
    assert [tree["id"] for tree in model["trees"]] == [0, 1, 2]
    assert model["iteration_indptr"] == [0, 1, 2, 3]
    assert model["tree_info"] == [0, 0, 0]
    assert model["gbtree_model_param"] == {"num_parallel_tree": "1", "num_trees": "3"}


def test_the_first_model_is_what_a_node_returns() -> None:
    assert leaves(forest(xgboost_model([{"leaf": "a"}]), xgboost_model([{"leaf": "b"}]))) == ["a", "b"]


def test_all_trees_of_a_reply_count() -> None:
    grown = xgboost_model([{"leaf": name} for name in "bcd"])  # three rounds of boosting at the node
    model = forest(grown, start=xgboost_model([{"leaf": "a"}]))
    assert leaves(model) == ["a", "b", "c", "d"]
    assert model["iteration_indptr"] == [0, 1, 2, 3, 4]


def test_parallel_trees_are_one_round() -> None:
    grown = xgboost_model([{"leaf": name} for name in "bc"], parallel=2)
    model = forest(grown, grown, start=grown)
    assert leaves(model) == ["b", "c"] * 3
    assert model["iteration_indptr"] == [0, 2, 4, 6]


def test_a_model_grows_from_round_to_round() -> None:
    strategy, model = FedXgbBagging(), ArrayRecord([np.array([], np.uint8)])
    for server_round in range(1, 4):
        answers = [reply(n, ArrayRecord([xgboost_model([{"leaf": [server_round, n]}])])) for n in (2, 3)]
        new = train(strategy, model, answers, server_round)
        assert new is not None
        model = new
    found = json.loads(model["0"].numpy().tobytes())["learner"]["gradient_booster"]["model"]
    assert leaves(found) == [[server_round, n] for server_round in (1, 2, 3) for n in (2, 3)]


def test_metrics_are_weighted() -> None:
    answers = [
        reply(n, ArrayRecord([xgboost_model([{"leaf": n}])]), num__examples=n, train_loss=float(n)) for n in (1, 3)
    ]
    _, metrics = FedXgbBagging().aggregate_train(1, answers)
    assert metrics == {"train_loss": pytest.approx(2.5)}
