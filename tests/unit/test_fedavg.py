from __future__ import annotations

import logging
import tracemalloc
import types
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flq.apps import Array, ArrayRecord, ConfigRecord, Error, Grid, Message, MetricRecord, RecordDict
from flq.apps.strategy import (
    FedAvg,
    InconsistentReplies,
    aggregate_arrayrecords,
    aggregate_metricrecords,
    sample_nodes,
    validate_message_reply_consistency,
)
from flq.apps.strategy.mean import WeightedMean
from flq.apps.strategy.sampling import available_nodes
from flq.errors import StrategyError
from flq.wire.codec import decode, encode
from flq.wire.ids import ObjectHash
from tests.grid_double import GridDouble

FLOATS = st.floats(-1e6, 1e6, width=32)
MODELS = st.lists(hnp.arrays(np.float32, 5, elements=FLOATS), min_size=1, max_size=6)


def request(node_id: int) -> Message:
    return Message(RecordDict(), dst_node_id=node_id, message_type="train")


def reply(node_id: int, *arrays: Any, **metrics: Any) -> Message:
    values = {"num-examples": 1, **{key.replace("_", "-"): value for key, value in metrics.items()}}
    model = ArrayRecord([np.asarray(array, np.float32) for array in arrays])
    content = RecordDict({"arrays": model, "metrics": MetricRecord(values)})
    return Message(content, reply_to=request(node_id))


def failed(node_id: int, reason: str = "boom") -> Message:
    return Message(Error(2, reason), reply_to=request(node_id))


def aggregate(*replies: Message, strategy: FedAvg | None = None) -> tuple[list[Any], dict[str, Any]]:
    arrays, metrics = (strategy or FedAvg()).aggregate_train(1, replies)
    assert arrays is not None
    assert metrics is not None
    return [array.tolist() for array in arrays.to_numpy_ndarrays()], dict(metrics)


class TestMean:
    def test_counts_each_model_by_its_weight(self) -> None:
        arrays, metrics = aggregate(
            reply(2, [1, 2], loss=1.0, num_examples=10), reply(3, [4, 8], loss=4.0, num_examples=20)
        )
        assert arrays == [[3, 6]]
        assert metrics == {"loss": pytest.approx(3.0)}

    @given(MODELS, st.data())
    def test_is_the_weighted_mean_to_the_last_rounding(self, models: list[np.ndarray], data: st.DataObject) -> None:
        weights = data.draw(st.lists(st.integers(1, 10_000), min_size=len(models), max_size=len(models)))
        mean = WeightedMean(float64=True)
        for model, weight in zip(models, weights, strict=True):
            mean.add({"w": model}, weight)
        exact = np.average(np.asarray(models, np.longdouble), axis=0, weights=weights)
        found = mean.finish()["w"].numpy()
        assert found.dtype == np.float32
        scale = np.abs(np.asarray(models, np.longdouble)).max()
        assert np.all(np.abs(found - exact) <= np.spacing(np.abs(found)) + 1e-12 * scale)

    @given(MODELS, st.randoms())
    def test_the_order_of_replies_hardly_matters(self, models: list[np.ndarray], random: Any) -> None:
        shuffled = list(models)
        random.shuffle(shuffled)
        one, other = (self.mean_of(*order, float64=True) for order in (models, shuffled))
        assert np.allclose(one, other, rtol=2e-7, atol=1e-6)

    @given(hnp.arrays(st.sampled_from([np.float16, np.float32, np.float64, np.complex64, np.int64, np.bool_]), 4))
    def test_equal_models_and_a_single_one_come_back_exactly(self, model: np.ndarray) -> None:
        if model.dtype.kind == "i":
            model = model % (1 << 53)
        model = np.where(np.isfinite(model), model, 0).astype(model.dtype)
        for count in (1, 2, 7):
            assert np.array_equal(self.mean_of(*[model] * count), model)

    @staticmethod
    def mean_of(*models: np.ndarray, **options: Any) -> np.ndarray:
        mean = WeightedMean(**options)
        for model in models:
            mean.add({"w": model}, 3.0)
        return mean.finish()["w"].numpy()

    @given(MODELS, st.data())
    def test_in_float32_it_is_off_by_a_rounding_for_each_model_at_most(
        self, models: list[np.ndarray], data: st.DataObject
    ) -> None:
        weights = data.draw(st.lists(st.integers(1, 10_000), min_size=len(models), max_size=len(models)))
        mean = WeightedMean()
        for model, weight in zip(models, weights, strict=True):
            mean.add({"w": model}, weight)
        exact = np.average(np.asarray(models, np.float64), axis=0, weights=weights)
        scale = np.abs(np.asarray(models, np.float64)).max()
        assert np.all(np.abs(mean.finish()["w"].numpy() - exact) <= len(models) * 4e-7 * scale + 1e-38)

    @pytest.mark.parametrize("float64", [False, True])
    @pytest.mark.parametrize("dtype", [np.float32, np.int32])
    def test_is_the_same_to_the_bit_in_blocks_and_on_threads(self, *, float64: bool, dtype: type) -> None:
        rng = np.random.default_rng(0)
        models: list[np.ndarray] = [(1000 * rng.normal(size=2_200_001)).astype(dtype) for _ in range(3)]
        expected = np.mean(np.asarray(models, np.float64), axis=0)
        found = [self.mean_of(*models, float64=float64, threads=threads) for threads in (1, 2, 3)]
        assert all(np.array_equal(found[0], other) for other in found)
        assert np.abs(found[0] - expected).max() <= (0.5 if dtype is np.int32 else 1e-3)

    @pytest.mark.parametrize("float64", [False, True])
    @pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32])
    def test_is_the_same_to_the_bit_however_models_are_grouped(self, *, float64: bool, dtype: type) -> None:
        rng = np.random.default_rng(1)
        shapes = {"bias": (7,), "scalar": (), "empty": (0, 3), "large": (700, 600)}
        models: list[tuple[dict[str, np.ndarray], float]] = [
            ({key: np.asarray(99 * rng.normal(size=shapes[key]), dtype) for key in shapes}, w) for w in range(1, 8)
        ]

        def mean_of(*groups: int, threads: int) -> dict[str, bytes]:
            mean, waiting = WeightedMean(float64=float64, threads=threads), list(models)
            for size in groups:
                group, waiting = waiting[:size], waiting[size:]
                mean.add_all(group)
            for model, weight in waiting:
                mean.add(model, weight)
            return {key: array.view().tobytes() for key, array in mean.finish().items()}

        one_by_one = mean_of(threads=1)
        for groups in ((7,), (1, 6), (3, 0, 4), (2, 2)):
            assert all(mean_of(*groups, threads=threads) == one_by_one for threads in (1, 2, 3))

    def test_values_that_are_too_large_to_add_up_are_an_error(self) -> None:
        models = [np.full(2, value, np.float32) for value in (3e38, -3e38)]
        with pytest.raises(StrategyError, match="the mean of the array 'w' is not finite") as caught:
            self.mean_of(*models)
        assert "float64_accumulator" in str(caught.value.hint)
        assert self.mean_of(*models, float64=True).tolist() == [0, 0]

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            (np.array([1, 2], np.int32), 2),  # 1.5 is rounded to the even one
            (np.array([True, True, False]), True),
            (np.array([True, False, False]), False),
            (np.array([255, 255], np.uint8), 255),
            (np.array([np.iinfo(np.int64).max] * 2), np.nextafter(2.0**63, 0)),
            (np.array([np.iinfo(np.uint64).max] * 2, np.uint64), np.nextafter(2.0**64, 0)),
            (np.array([65504, 65504], np.float16), 65504),
        ],
    )
    def test_dtypes_are_kept(self, values: np.ndarray, expected: object) -> None:
        found = self.mean_of(*[np.asarray(value, values.dtype) for value in values])
        assert (found.dtype, found.shape, found.item()) == (values.dtype, (), expected)

    def test_shapes_are_kept(self) -> None:
        mean = WeightedMean()
        shapes: dict[str, tuple[int, ...]] = {"scalar": (), "empty": (0, 3), "cube": (2, 3, 4)}
        for _ in range(2):
            mean.add({name: np.ones(shape, np.float32) for name, shape in shapes.items()}, 1)
        assert {name: array.shape for name, array in mean.finish().items()} == shapes


class TestWhatCannotBeUsed:
    """It is logged with node and reason, and left out; the rest counts."""

    @pytest.mark.parametrize(
        ("bad", "reason"),
        [
            (failed(9), "error 2: boom"),
            (reply(9, [np.nan, 1]), "array '0' has NaN or infinite values"),
            (reply(9, [np.inf, 1]), "array '0' has NaN or infinite values"),
            (reply(9, [1, 2], num_examples=0), "'num-examples' is 0"),
            (reply(9, [1, 2], num_examples=-5), "'num-examples' is -5"),
            (reply(9, [1, 2], num_examples=float("nan")), "'num-examples' is nan"),
            (reply(9, [1, 2], num_examples=[1]), "a weight is a positive number"),
            (reply(9, [1, 2, 3]), r"its arrays are not those of the other replies: it has '0' float32 \(3,\)"),
            (reply(9, [1, 2], [3]), "it has '1' float32"),
            (reply(9, [1, 2], extra=1), "its metrics are not those"),
        ],
    )
    @pytest.mark.parametrize("place", [0, 1, 2])
    def test_is_left_out_and_logged(
        self, bad: Message, reason: str, place: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING)
        replies = [reply(2, [1, 2]), reply(3, [3, 4])]
        replies.insert(place, bad)
        assert aggregate(*replies)[0] == [[2, 3]]
        (record,) = caplog.records
        assert record.getMessage().startswith("the reply of node 9 is not used: ")
        assert __import__("re").search(reason, record.getMessage())

    @pytest.mark.parametrize(
        ("records", "reason"),
        [
            ({}, "0 ArrayRecords"),
            ({"a": ArrayRecord(), "b": ArrayRecord(), "m": MetricRecord({"num-examples": 1})}, "2 ArrayRecords"),
            ({"a": ArrayRecord()}, "0 MetricRecords"),
            ({"a": ArrayRecord(), "m": MetricRecord(), "n": MetricRecord()}, "2 MetricRecords"),
            ({"a": ArrayRecord(), "m": MetricRecord({"n": 1})}, "no 'num-examples'"),
        ],
    )
    def test_records_that_are_missing_are_named(self, records: dict[str, Any], reason: str) -> None:
        bad = Message(RecordDict(records), reply_to=request(9))
        with pytest.raises(StrategyError, match=f"node 9: .*{reason}"):
            FedAvg().aggregate_train(1, [bad])

    def test_opaque_arrays_cannot_be_averaged(self) -> None:
        content = RecordDict(
            {"a": ArrayRecord({"w": Array("x", (1,), "mine", b"a")}), "m": MetricRecord({"num-examples": 1})}
        )
        with pytest.raises(StrategyError, match="opaque"):
            FedAvg().aggregate_train(1, [Message(content, reply_to=request(2))])

    def test_a_model_that_cannot_be_read_is_left_out(self) -> None:
        encoded = encode(reply(9, np.zeros(20_000)).content)

        def gone(_name: ObjectHash, _size: int) -> memoryview:
            return memoryview(b"")

        bad = Message(decode(encoded.manifest, gone), reply_to=request(9))
        arrays, _ = aggregate(bad, reply(2, np.ones(20_000)))
        assert arrays[0][0] == 1

    def test_a_round_without_any_usable_reply_ends_the_run_with_the_reasons(self) -> None:
        with pytest.raises(StrategyError, match="round 4: none of 2 replies can be used: node 2: error 2: disk full"):
            FedAvg().aggregate_train(4, [failed(2, "disk full"), failed(3)])
        assert FedAvg().aggregate_train(4, []) == (None, None)

    def test_a_reason_that_many_share_is_told_once(self, caplog: pytest.LogCaptureFixture) -> None:
        told = [failed(node_id, "boom\nTraceback of ten lines") for node_id in range(2, 8)]
        with pytest.raises(StrategyError) as caught:
            FedAvg().aggregate_train(1, [*told, failed(9, "disk full")])
        assert caught.value.message == (
            "round 1: none of 7 replies can be used: node 2, node 3, node 4 and 3 more: error 2: boom; "
            "node 9: error 2: disk full"
        )
        assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
            "the reply of node 2 is not used: error 2: boom\nTraceback of ten lines",
            "the reply of node 9 is not used: error 2: disk full",
            "nor are those of node 3, node 4, node 5 and 2 more, for the same reason: error 2: boom",
        ]

    def test_an_evaluation_without_any_usable_reply_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        assert FedAvg().aggregate_evaluate(4, [failed(2)]) is None
        assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]
        assert FedAvg().aggregate_evaluate(4, []) is None


class TestMajority:
    def test_a_single_odd_reply_does_not_outvote_the_rest_even_if_it_comes_first(self) -> None:
        odd = reply(2, [100, 100, 100])
        assert aggregate(odd, reply(3, [1]), reply(4, [3]))[0] == [[2]]

    def test_what_was_sent_decides_a_tie(self) -> None:
        strategy = FedAvg()
        grid = Grid(GridDouble(lambda _message: RecordDict()))
        strategy.configure_train(1, ArrayRecord([np.zeros(1, np.float32)]), ConfigRecord(), grid)
        assert aggregate(reply(2, [1, 1]), reply(3, [5]), strategy=strategy)[0] == [[5]]

    def test_nodes_may_all_return_something_else_than_was_sent(self) -> None:
        strategy = FedAvg()
        grid = Grid(GridDouble(lambda _message: RecordDict()))
        strategy.configure_train(1, ArrayRecord([np.zeros(1), np.zeros(9)]), ConfigRecord(), grid)
        assert aggregate(reply(2, [1]), reply(3, [5]), strategy=strategy)[0] == [[3]]

    def test_nan_in_the_majority_is_still_refused(self) -> None:
        replies = reply(2, [9, 9]), reply(3, [np.nan]), reply(4, [1]), reply(5, [3])
        assert aggregate(*replies)[0] == [[2]]


class TestMetrics:
    def test_lists_are_averaged_element_by_element(self) -> None:
        metrics = aggregate(reply(2, [1], by_class=[0.0, 2.0]), reply(3, [1], by_class=[1.0, 4.0]))[1]
        assert metrics == {"by-class": [0.5, 3.0]}

    def test_an_own_function_gets_metric_and_config_records_and_the_key(self) -> None:
        seen: list[Any] = []

        def worst(contents: list[RecordDict], key: str) -> MetricRecord:
            seen.extend([contents, key])
            losses = [content.metric_records["metrics"]["loss"] for content in contents]
            return MetricRecord({"worst": max(loss for loss in losses if isinstance(loss, float))})

        strategy = FedAvg(train_metrics_aggr_fn=worst, evaluate_metrics_aggr_fn=worst)
        assert aggregate(reply(2, [1], loss=1.0), reply(3, [1], loss=4.0), strategy=strategy)[1] == {"worst": 4.0}
        assert [list(content) for content in seen[0]] == [["metrics"], ["metrics"]]
        assert seen[1] == "num-examples"
        assert strategy.aggregate_evaluate(1, [reply(2, loss=2.0)]) == {"worst": 2.0}

    def test_another_metric_may_be_the_weight(self) -> None:
        strategy = FedAvg(weighted_by_key="trust")
        arrays, metrics = aggregate(reply(2, [0], trust=1.0), reply(3, [4], trust=3.0), strategy=strategy)
        assert arrays == [[3]]
        assert metrics == {"num-examples": 1}

    def test_infinite_losses_show(self) -> None:
        assert aggregate(reply(2, [1], loss=float("inf")), reply(3, [1], loss=1.0))[1] == {"loss": float("inf")}


class TestStreaming:
    def test_memory_is_one_accumulator_and_one_reply(self) -> None:
        size = 1 << 20
        content = RecordDict({"a": ArrayRecord([np.zeros(size, np.float32)]), "m": MetricRecord({"num-examples": 1})})
        encoded = encode(content)

        def fetch(_name: ObjectHash, nbytes: int) -> memoryview:
            return np.zeros(nbytes, np.uint8).data

        def replies() -> Iterator[Message]:
            for node_id in range(2, 22):
                yield Message(decode(encoded.manifest, fetch), reply_to=request(node_id))

        del content
        tracemalloc.start()
        try:
            FedAvg().aggregate_train(1, replies())
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        accumulator, one = 4 * size, 4 * size  # of one array: others of the reply are not read yet
        assert peak < accumulator + one + (4 << 20)

    def test_replies_in_memory_make_the_same_model_as_those_that_are_read_one_by_one(self) -> None:
        rng = np.random.default_rng(2)
        models = [rng.normal(size=(2, 300_000)).astype(np.float32) for _ in range(6)]

        def received(node_id: int) -> Message:
            arrays = {
                str(row): Array.lazy(dtype="float32", shape=weights.shape, load=partial(getattr, weights, "data"))
                for row, weights in enumerate(models[node_id - 2])
            }
            metrics = MetricRecord({"num-examples": node_id})
            return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=request(node_id))

        def held(node_id: int) -> Message:
            return reply(node_id, *models[node_id - 2], num_examples=node_id)

        def bits(replies: Iterable[Message], threads: int) -> list[bytes]:
            arrays, _ = FedAvg(threads=threads).aggregate_train(1, replies)
            assert arrays is not None
            return [array.view().tobytes() for array in arrays.values()]

        nodes = range(2, 8)
        expected = bits((received(node) for node in nodes), 1)
        mixed = [(received if node in {4, 5} else held)(node) for node in nodes]
        for threads in (1, 2):
            assert bits([held(node) for node in nodes], threads) == expected
            assert bits((held(node) for node in nodes), threads) == expected
            assert bits(mixed, threads) == expected

    def test_folds_while_replies_come_in(self) -> None:
        door = GridDouble(lambda message: reply(message.metadata.dst_node_id, [1.0]).content, node_ids=range(2, 12))
        grid = Grid(door)
        open_tasks: list[int] = []

        def watched(replies: Iterable[Message]) -> Iterator[Message]:
            for message in replies:
                open_tasks.append(len(door.open))
                yield message

        messages = [Message(RecordDict(), node_id, "train") for node_id in door.node_ids]
        FedAvg().aggregate_train(1, watched(grid.send_and_receive(messages)))
        assert open_tasks == list(range(9, -1, -1))


class TestMessages:
    def grid(self, count: int = 10) -> Grid:
        return Grid(GridDouble(lambda _message: RecordDict(), node_ids=range(2, 2 + count)))

    def nodes(self, messages: Iterable[Message]) -> list[int]:
        return [message.metadata.dst_node_id for message in messages]

    def test_all_chosen_nodes_get_the_model_and_the_config_with_the_round(self) -> None:
        arrays, config = ArrayRecord([np.zeros(2)]), ConfigRecord({"lr": 0.1})
        for configure, kind in (
            (FedAvg().configure_train, "train"),
            (FedAvg().configure_evaluate, "evaluate"),
        ):
            messages = list(configure(3, arrays, config, self.grid()))
            assert self.nodes(messages) == list(range(2, 12))
            first = messages[0]
            assert first.content["arrays"] is arrays
            assert first.content["config"] == {"lr": 0.1, "server-round": 3}
            assert (first.metadata.message_type, first.metadata.group_id) == (kind, "3")
            assert all(message.content is first.content for message in messages)
        assert "server-round" not in config

    def test_records_may_have_other_names(self) -> None:
        strategy = FedAvg(arrayrecord_key="model", configrecord_key="how")
        (first, *_) = strategy.configure_train(1, ArrayRecord(), ConfigRecord(), self.grid())
        assert list(first.content) == ["model", "how"]

    def test_a_fraction_of_zero_leaves_the_step_out(self) -> None:
        strategy = FedAvg(fraction_train=0.0, fraction_evaluate=0.0)
        assert list(strategy.configure_train(1, ArrayRecord(), ConfigRecord(), self.grid())) == []
        assert list(strategy.configure_evaluate(1, ArrayRecord(), ConfigRecord(), self.grid())) == []

    @pytest.mark.parametrize(
        ("fraction", "least", "expected"), [(0.5, 2, 5), (0.19, 1, 1), (0.1, 4, 4), (1.0, 2, 10), (0.01, 1, 1)]
    )
    def test_as_many_are_chosen_as_asked_for(self, fraction: float, least: int, expected: int) -> None:
        strategy = FedAvg(fraction_train=fraction, min_train_nodes=least)
        chosen = self.nodes(strategy.configure_train(1, ArrayRecord(), ConfigRecord(), self.grid()))
        assert len(chosen) == expected
        assert chosen == sorted(set(chosen))

    def test_the_choice_follows_from_seed_and_round(self) -> None:
        def choice(seed: str, server_round: int) -> list[int]:
            strategy = FedAvg(fraction_train=0.3)
            strategy.seed = seed
            return self.nodes(strategy.configure_train(server_round, ArrayRecord(), ConfigRecord(), self.grid(50)))

        assert choice("7/0", 1) == choice("7/0", 1)
        assert len({tuple(choice(seed, server_round)) for seed in ("7/0", "8/0") for server_round in (1, 2)}) == 4

    @pytest.mark.parametrize("fraction", [-0.1, 1.5, float("nan")])
    def test_a_fraction_is_one(self, fraction: float) -> None:
        with pytest.raises(StrategyError, match="fraction_train"):
            list(FedAvg(fraction_train=fraction).configure_train(1, ArrayRecord(), ConfigRecord(), self.grid()))


class Nodes:
    """A plain Grid whose nodes come one after the other."""

    def __init__(self, *online: Sequence[int]) -> None:
        self.online = list(online)
        self.waits = 0

    def get_node_ids(self) -> Sequence[int]:
        return self.online[min(self.waits, len(self.online) - 1)]

    def wait(self, seconds: float) -> None:
        assert 0 < seconds <= 1
        self.waits += 1

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str | None]:
        raise AssertionError(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise AssertionError(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise AssertionError(messages, timeout)


class TestSampling:
    def test_waits_until_enough_nodes_are_online(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        grid = Nodes([], [5], [5, 4], [5, 4, 3])
        sampled, everyone = sample_nodes(grid, 3, 2, seed="1")
        assert everyone == [3, 4, 5]
        assert len(sampled) == 2
        assert grid.waits == 3
        assert [record.getMessage() for record in caplog.records] == [
            "waiting for nodes: 0 of 3 nodes are online; giving up in 3600 s"
        ]

    def test_says_from_time_to_time_who_is_there(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        grid = Nodes([5])
        with pytest.raises(StrategyError, match=r"1 of 2 nodes are online \(node 5\) after 100 s") as caught:
            available_nodes(grid, 2, timeout=100, clock=lambda: float(grid.waits))
        assert "SuperNodes" in str(caught.value.hint)
        assert len(caplog.records) == 4

    def test_a_grid_that_cannot_wait_is_asked_once_a_second(self, monkeypatch: pytest.MonkeyPatch) -> None:
        grid = Nodes([], [2])
        plain = types.SimpleNamespace(get_node_ids=grid.get_node_ids)
        monkeypatch.setattr("time.sleep", grid.wait)
        assert available_nodes(plain, 1) == [2]

    def test_without_a_seed_the_choice_is_that_of_random(self) -> None:
        grid = Nodes(range(2, 100))
        __import__("random").seed(1)
        first = sample_nodes(grid, 2, 5)[0]
        __import__("random").seed(1)
        assert sample_nodes(grid, 2, 5)[0] == first


class TestFunctions:
    def contents(self) -> list[RecordDict]:
        return [reply(2, [1, 2], loss=1.0).content, reply(3, [3, 6], loss=2.0, num_examples=3).content]

    def test_aggregate_whole_records(self) -> None:
        assert aggregate_arrayrecords(self.contents(), "num-examples")["0"].numpy().tolist() == [2.5, 5]
        assert aggregate_metricrecords(self.contents(), "num-examples") == {"loss": 1.75}
        assert aggregate_metricrecords([], "num-examples") == {}

    def test_validate(self) -> None:
        validate_message_reply_consistency(self.contents(), "num-examples", check_arrayrecord=True)
        odd = [*self.contents(), reply(4, [1], loss=1.0).content]
        validate_message_reply_consistency(odd, "num-examples", check_arrayrecord=False)
        with pytest.raises(InconsistentReplies, match="reply 2 cannot be used: its arrays"):
            validate_message_reply_consistency(odd, "num-examples", check_arrayrecord=True)
        with pytest.raises(InconsistentReplies, match="no 'weight'"):
            aggregate_arrayrecords(self.contents(), "weight")
