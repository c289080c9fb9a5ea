"""What a node may do wrong, with every strategy: it is logged with its reason and left out, and the rest counts."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from flq.apps import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flq.apps.strategy import FedAvg, FedXgbBagging, QFedAvg, select_multikrum
from flq.apps.strategy.fold import InconsistentReplies
from flq.errors import StrategyError
from flq.wire.codec import decode, encode
from flq.wire.ids import ObjectHash
from tests.unit.strategy_replies import (
    SYNCHRONOUS,
    failed,
    record,
    replies,
    reply,
    request,
    train,
    values,
    xgboost_model,
)

START = record([1, 2])
GOOD = [[1, 2], [2, 3], [1.5, 2.5], [1.2, 2.1]]


def unreadable(node_id: int) -> Message:
    """A reply whose array is gone from the store."""
    encoded = encode(reply(node_id, record(np.zeros(40_000))).content)

    def gone(_name: ObjectHash, _size: int) -> memoryview:
        return memoryview(b"")

    return Message(decode(encoded.manifest, gone), reply_to=request(node_id))


def without(node_id: int, name: str) -> Message:
    content = reply(node_id, record([1, 2])).content
    del content[name]
    return Message(content, reply_to=request(node_id))


def lacking(node_id: int, metric: str) -> Message:
    content = reply(node_id, record([1, 2])).content
    del content.metric_records["metrics"][metric]
    return Message(content, reply_to=request(node_id))


def twice(node_id: int) -> Message:
    content = reply(node_id, record([1, 2])).content
    content["more"] = record([1, 2])
    return Message(content, reply_to=request(node_id))


BAD: dict[str, tuple[Message, str]] = {
    "an error": (failed(9), "error 2: boom"),
    "no arrays": (without(9, "arrays"), "0 ArrayRecords; exactly one is needed"),
    "two models": (twice(9), "2 ArrayRecords; exactly one is needed"),
    "no metrics": (without(9, "metrics"), "0 MetricRecords; exactly one is needed"),
    "no weight": (lacking(9, "num-examples"), "its metrics have no 'num-examples'"),
    "a weight of zero": (reply(9, record([1, 2]), num__examples=0), "its 'num-examples' is 0"),
    "a negative weight": (reply(9, record([1, 2]), num__examples=-1), "its 'num-examples' is -1"),
    "a weight of NaN": (reply(9, record([1, 2]), num__examples=float("nan")), "its 'num-examples' is nan"),
    "another shape": (reply(9, record([1, 2, 3])), "its arrays are not those of the other replies"),
    "another dtype": (reply(9, record([1, 2], dtype=np.int32)), "its arrays are not those of the other replies"),
    "another name": (reply(9, ArrayRecord({"w": Array(np.float32([1, 2]))})), "its arrays are not those"),  # type: ignore[arg-type]
    "one array more": (reply(9, record([1, 2], [3])), "its arrays are not those of the other replies"),
    "NaN": (reply(9, record([np.nan, 1])), "its array '0' has NaN or infinite values"),
    "infinity": (reply(9, record([1, -np.inf])), "its array '0' has NaN or infinite values"),
}


@pytest.mark.parametrize("place", [0, 3])
@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_is_left_out(name: str, what: str, place: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="flq.app")
    bad, reason = BAD[what]
    answers = replies(GOOD)
    expected = train(SYNCHRONOUS[name](), START, replies(GOOD))
    answers.insert(place, bad)
    caplog.clear()
    assert np.array_equal(values(train(SYNCHRONOUS[name](), START, answers)), values(expected))
    (told,) = [entry.getMessage() for entry in caplog.records if "node 9" in entry.getMessage()]
    assert told.startswith("the reply of node 9 is not used: ")
    assert reason in told


@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_a_round_without_any_usable_reply_ends_the_run(name: str) -> None:
    with pytest.raises(StrategyError, match=re.escape("round 3: none of 2 replies can be used: node 9: error 2: boom")):
        train(SYNCHRONOUS[name](), START, [failed(9), reply(8, record([np.nan, 1]))], server_round=3)


@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_no_replies_keep_the_model(name: str) -> None:
    assert train(SYNCHRONOUS[name](), START, []) is None


@pytest.mark.parametrize("name", SYNCHRONOUS)
@pytest.mark.parametrize("kind", [list, iter])
def test_arrays_that_are_gone(name: str, kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    start = record(np.zeros(40_000))
    good = [reply(node_id, record(np.full(40_000, node_id / 10))) for node_id in (2, 3, 4, 5)]
    expected = train(SYNCHRONOUS[name](), start, list(good))
    answers = kind([good[0], unreadable(9), *good[1:]])
    assert train(SYNCHRONOUS[name](), start, answers) == expected
    assert "the reply of node 9 is not used: its array '0' cannot be read" in caplog.text


@pytest.mark.parametrize("name", ["FedAvg", "QFedAvg", "FedMedian"])
@pytest.mark.parametrize("bad", ["NaN in the last array", "the last array is gone"])
def test_a_large_reply_that_was_folded_in_part_is_taken_back(
    name: str, bad: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Large arrays are read when they are folded; what is wrong with the last one shows when the others are folded."""
    size = 1 << 20
    shapes = [(4 * size,), (size,)]
    stored: dict[ObjectHash, bytes] = {}
    reads: list[int] = []

    def fetch(name: ObjectHash, nbytes: int) -> memoryview:
        reads.append(nbytes)
        return memoryview(bytearray(stored[name]))

    def stored_reply(node_id: int, last: float) -> Message:
        arrays = record(np.full(shapes[0], node_id, np.float32), np.full(shapes[1], last, np.float32))
        encoded = encode(reply(node_id, arrays).content)
        stored.update({key: bytes(data) for key, data in encoded.objects.items()})
        if last == GONE:
            stored[next(key for key, data in encoded.objects.items() if data.nbytes == 4 * size)] = b""
        return Message(decode(encoded.manifest, fetch), reply_to=request(node_id))

    gone = 77.0
    GONE = gone  # noqa: N806 - a sentinel
    start = record(np.zeros(shapes[0]), np.zeros(shapes[1]))

    def answers(*, with_bad: bool) -> Iterator[Message]:
        yield stored_reply(2, 1.0)
        if with_bad:
            yield stored_reply(9, gone if "gone" in bad else np.nan)
        yield stored_reply(3, 2.0)

    expected = train(SYNCHRONOUS[name](), start, answers(with_bad=False))
    undisturbed, reads[:] = len(reads), []
    assert undisturbed == 4  # two arrays of two replies, each read once
    assert train(SYNCHRONOUS[name](), start, answers(with_bad=True)) == expected
    assert "the reply of node 9 is not used: its array '1'" in caplog.text


def test_a_loss_to_count_by_is_there_and_not_negative(caplog: pytest.LogCaptureFixture) -> None:
    for bad, told in (
        (lacking(9, "train_loss"), "its metrics have no 'train_loss'"),
        (reply(9, record([5, 5]), train_loss=-1.0), "its 'train_loss' is -1.0"),
        (reply(9, record([5, 5]), train_loss=float("inf")), "its 'train_loss' is inf"),
        (reply(9, record([5, 5]), train_loss=[1.0]), r"its 'train_loss' is [1.0]"),
    ):
        caplog.clear()
        new = train(QFedAvg(0.1, q=0.0), START, [*replies([[3, 4]] * 2), bad])
        assert values(new) == pytest.approx([3, 4])
        assert told in caplog.text


def test_a_selection_rule_by_hand_says_which_reply_is_wrong() -> None:
    contents = [answer.content for answer in replies([[1, 2], [np.nan, 1]])]
    with pytest.raises(InconsistentReplies, match="reply 1 cannot be used: its array '0' has NaN"):
        select_multikrum(contents, 0, 1)


class TestForests:
    START = ArrayRecord([xgboost_model([{"leaf": [0.5]}])])

    @pytest.mark.parametrize(
        ("model", "told"),
        [
            (np.frombuffer(b"no json", np.uint8), "it is no model of XGBoost in JSON"),
            (np.frombuffer(b"{}", np.uint8), "it is no tree model of XGBoost: KeyError 'learner'"),
            (np.frombuffer(b"[1]", np.uint8), "it is no tree model of XGBoost: TypeError"),
            (np.float32([1, 2]), "its array is of dtype float32"),  # type: ignore[arg-type]
            (
                np.frombuffer(
                    xgboost_model([{}]).tobytes().replace(b'"num_trees": "1"', b'"num_trees": "3"'), np.uint8
                ),
                "it says that it has 3 trees, and has 1",
            ),
        ],
    )
    @pytest.mark.parametrize("first", [b"", b"trees"])
    def test_what_is_none_is_left_out(
        self, model: np.ndarray, told: str, first: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        start = self.START if first else ArrayRecord([np.array([], np.uint8)])
        answers = [
            reply(2, ArrayRecord([xgboost_model([{"leaf": [1]}])])),
            reply(9, ArrayRecord([model])),
            reply(3, ArrayRecord([xgboost_model([{"leaf": [2]}])])),
        ]
        expected = train(FedXgbBagging(), start, [answers[0], answers[2]])
        assert train(FedXgbBagging(), start, answers) == expected
        if model.dtype == np.uint8:
            assert told in caplog.text

    def test_the_model_to_add_to_must_be_one(self) -> None:
        good = reply(2, ArrayRecord([xgboost_model([{}])]))
        with pytest.raises(StrategyError, match="a model of XGBoost is one array of bytes; this one has 2"):
            train(FedXgbBagging(), record([1], [2]), [good])
        with pytest.raises(
            StrategyError, match="the model that trees are to be added to is none: it is no model of XGBoost in JSON"
        ):
            train(FedXgbBagging(), ArrayRecord([np.frombuffer(b"x", np.uint8)]), [good])


def test_the_reasons_of_a_strategy_that_gathers_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    answers = [*replies(GOOD), *(reply(node_id, record([np.nan, 1])) for node_id in (7, 8, 9))]
    train(SYNCHRONOUS["FedMedian"](), START, answers)
    told = [entry.getMessage() for entry in caplog.records if entry.levelno == logging.WARNING]
    assert told == [
        "the reply of node 7 is not used: its array '0' has NaN or infinite values",
        "nor are those of node 8, node 9, for the same reason: its array '0' has NaN or infinite values",
    ]


def test_a_metric_record_of_another_look_is_outvoted() -> None:
    odd = Message(
        RecordDict({"arrays": record([9, 9]), "metrics": MetricRecord({"num-examples": 1, "other": 1.0})}),
        reply_to=request(9),
    )
    assert values(FedAvg().aggregate_train(1, [odd, *replies([[1, 2]] * 2)])[0]) == pytest.approx([1, 2])
