"""The metrics of rounds in a Result: a dict of records to whoever uses it, a few bytes a round while nobody does."""

from __future__ import annotations

import copy
import math
import pickle
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flq.apps.strategy import Result
from flq.apps.strategy.result import RoundMetrics
from flq.wire.records import MetricRecord

ROUNDS = 2000

values = st.integers(-(1 << 63), (1 << 64) - 1) | st.floats(allow_nan=False) | st.lists(st.integers(0, 9), max_size=3)
records = st.dictionaries(st.sampled_from(["loss", "accuracy", "n"]), values, max_size=3).map(MetricRecord)
rounds = st.integers(0, 9)
Step = Callable[[RoundMetrics, dict[int, MetricRecord]], None]


def put(number: int, record: MetricRecord) -> Step:
    def step(metrics: RoundMetrics, model: dict[int, MetricRecord]) -> None:
        metrics[number], model[number] = MetricRecord(dict(record)), MetricRecord(dict(record))

    return step


def change(number: int) -> Step:
    def step(metrics: RoundMetrics, model: dict[int, MetricRecord]) -> None:
        for records in (metrics, model):
            if number in records:
                records[number]["changed"] = 1.5

    return step


def drop(number: int) -> Step:
    def step(metrics: RoundMetrics, model: dict[int, MetricRecord]) -> None:
        assert (metrics.pop(number, None) is None) == (model.pop(number, None) is None)

    return step


def pack(metrics: RoundMetrics, _model: dict[int, MetricRecord]) -> None:
    metrics.pack()


steps = st.builds(put, rounds, records) | st.builds(change, rounds) | st.builds(drop, rounds) | st.just(pack)


@given(st.lists(steps, max_size=30))
def test_whatever_is_done_with_it_is_done_with_a_dict(done: list[Step]):
    metrics, model = RoundMetrics(), dict[int, MetricRecord]()
    for step in done:
        step(metrics, model)
        assert list(metrics) == list(model)
        assert len(metrics) == len(model)
        assert [number in metrics for number in range(10)] == [number in model for number in range(10)]
    assert [*reversed(metrics)] == [*reversed(model)]
    assert repr(metrics) == repr(model)
    assert metrics == model
    types = [[type(value) for value in record.values()] for record in metrics.values()]
    assert types == [[type(value) for value in record.values()] for record in model.values()]


@pytest.fixture
def packed() -> RoundMetrics:
    metrics = RoundMetrics({1: MetricRecord({"loss": 0.5, "n": 3}), 2: MetricRecord({"loss": math.nan, "all": [1, 2]})})
    metrics.pack()
    return metrics


def test_a_packed_record_is_one_again_and_stays_it(packed: RoundMetrics):
    packed[1]["loss"] = 0.25
    packed.pack()
    assert packed[1] == {"loss": 0.25, "n": 3}
    assert packed[1] is packed[1]
    assert math.isnan(packed[2]["loss"])  # type: ignore[arg-type]


def test_what_is_not_there_is_said_to_be_missing(packed: RoundMetrics):
    for number in (0, 3, "1", None):
        assert number not in packed
        with pytest.raises(KeyError):
            packed[number]  # type: ignore[index]
    with pytest.raises(KeyError):
        del packed[3]


def test_it_can_be_copied_joined_and_stored(packed: RoundMetrics):
    more = {3: MetricRecord({"loss": 0.1})}
    assert packed | more == {**packed, **more} == more | packed
    assert list(more | packed) == [3, 1, 2]
    assert packed.copy() == dict(packed)
    assert pickle.loads(pickle.dumps(packed))[1] == packed[1]  # noqa: S301 - the test's own
    deep = copy.deepcopy(packed)
    deep[1]["loss"] = 9.0
    assert packed[1]["loss"] == 0.5


def test_packed_rounds_take_little_memory():
    tracemalloc.start()
    try:
        result = Result()
        before, _ = tracemalloc.get_traced_memory()
        for number in range(1, ROUNDS + 1):
            result.train_metrics_clientapp[number] = MetricRecord({"loss": 1 / number, "num-examples": number})
            result.evaluate_metrics_clientapp[number] = MetricRecord({"loss": 1 / number, "accuracy": 0.5})
            result.pack()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / ROUNDS < 50, "two numbers of each of two records in 8 bytes, and room to grow"
    assert result.train_metrics_clientapp[ROUNDS] == {"loss": 1 / ROUNDS, "num-examples": ROUNDS}


def test_a_result_of_ordinary_dicts_is_left_as_it_is():
    result = Result(train_metrics_clientapp={1: MetricRecord({"loss": 0.5})})
    result.pack()
    assert result == Result(train_metrics_clientapp=RoundMetrics({1: MetricRecord({"loss": 0.5})}))
    assert type(result.train_metrics_clientapp) is dict
