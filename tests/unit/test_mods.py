"""Mods around the handlers of a ClientApp."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from flq.apps import ArrayRecord, ClientApp, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flq.apps.mods import (
    ClientAppCallable,
    LocalDpMod,
    Mod,
    adaptiveclipping_mod,
    arrays_size_mod,
    fixedclipping_mod,
    make_mod_chain,
    message_size_mod,
)
from flq.wire.message import ErrorCode
from tests.unit.strategy_replies import record

START = record([1, 1])


def context() -> Context:
    return Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={})


def ask(norm: Any = 5.0, **records: Any) -> Message:
    content = RecordDict({"arrays": START, "config": ConfigRecord({"clipping_norm": norm}), **records})
    return Message(content, dst_node_id=2, message_type="train")


def trained(arrays: ArrayRecord, **records: Any) -> ClientAppCallable:
    def handler(msg: Message, _context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics, **records}), reply_to=msg)

    return handler


def failing(msg: Message, _context: Context) -> Message:
    return Message(Error(2, "boom"), reply_to=msg)


def answer(mod: Mod, handler: ClientAppCallable, msg: Message | None = None) -> Message:
    return make_mod_chain(handler, [mod])(msg or ask(), context())


def model(reply: Message) -> np.ndarray:
    return reply.content.array_records["arrays"]["0"].numpy()


LOCAL = LocalDpMod(clipping_norm=5.0, sensitivity=0.0, epsilon=1.0, delta=1e-5)


class TestClipping:
    @pytest.mark.parametrize("mod", [fixedclipping_mod, adaptiveclipping_mod, LOCAL])
    def test_the_update_is_scaled_down(self, mod: Mod) -> None:
        reply = answer(mod, trained(record([7, 9])))  # the update is (6, 8)
        assert model(reply) == pytest.approx([4, 5])

    @pytest.mark.parametrize("mod", [fixedclipping_mod, adaptiveclipping_mod, LOCAL])
    def test_a_short_one_stays_as_it_is(self, mod: Mod) -> None:
        assert answer(mod, trained(record([2, 2]))).content["arrays"] == record([2, 2])

    @pytest.mark.parametrize(("values", "bit"), [([7, 9], 1), ([2, 2], 0)])
    def test_the_adaptive_one_tells_whether_it_had_to(self, values: list[float], bit: int) -> None:
        reply = answer(adaptiveclipping_mod, trained(record(values)))
        assert reply.content["metrics"] == {"num-examples": 1, "norm_bit": bit}
        assert answer(fixedclipping_mod, trained(record(values))).content["metrics"] == {"num-examples": 1}

    @pytest.mark.parametrize("mod", [fixedclipping_mod, adaptiveclipping_mod, LOCAL])
    def test_an_error_passes(self, mod: Mod) -> None:
        assert answer(mod, failing).error == Error(2, "boom")

    @pytest.mark.parametrize(
        ("mod", "msg", "handler", "told"),
        [
            (fixedclipping_mod, ask(more=record([1])), trained(START), "one ArrayRecord in the message; it has 2"),
            (LOCAL, ask(more=record([1])), trained(START), "LocalDpMod needs exactly one ArrayRecord in the message"),
            (fixedclipping_mod, ask(more=ConfigRecord()), trained(START), "one ConfigRecord in the message; it has 2"),
            (fixedclipping_mod, ask(config=ConfigRecord()), trained(START), "needs 'clipping_norm' in the config"),
            (fixedclipping_mod, ask(0.0), trained(START), "'clipping_norm' is 0.0"),
            (fixedclipping_mod, ask("5"), trained(START), "'clipping_norm' is '5'"),
            (fixedclipping_mod, ask(), trained(START, more=START), "one ArrayRecord in the reply; it has 2"),
            (fixedclipping_mod, ask(), trained(record([1])), "the same names and shapes in the reply"),
            (LOCAL, ask(), trained(record([1], [2])), "the same names and shapes in the reply"),
            (adaptiveclipping_mod, ask(), trained(START, more=MetricRecord()), "one MetricRecord in the reply"),
        ],
    )
    def test_what_is_not_as_needed_is_an_error_that_says_so(
        self, mod: Mod, msg: Message, handler: ClientAppCallable, told: str
    ) -> None:
        reply = answer(mod, handler, msg)
        assert reply.error.code == ErrorCode.MOD_FAILED_PRECONDITION
        assert told in str(reply.error.reason)
        assert reply.metadata.dst_node_id == msg.metadata.src_node_id

    def test_a_handler_is_not_called_in_vain(self) -> None:
        def handler(_msg: Message, _context: Context) -> Message:
            raise AssertionError

        assert answer(fixedclipping_mod, handler, ask(config=ConfigRecord())).has_error()


class TestLocalPrivacy:
    def test_the_noise_is_that_of_the_gaussian_mechanism(self) -> None:
        mod = LocalDpMod(clipping_norm=1.0, sensitivity=0.5, epsilon=0.8, delta=1e-4)
        assert mod.deviation == pytest.approx(0.5 * np.sqrt(2 * np.log(1.25 / 1e-4)) / 0.8)
        start = record(np.zeros(100_000))
        msg = Message(RecordDict({"arrays": start}), dst_node_id=2, message_type="train")
        found = model(answer(mod, trained(start), msg))
        assert found.std() == pytest.approx(mod.deviation, rel=0.02)

    def test_a_task_that_is_done_again_gets_other_noise_whatever_the_seed(self) -> None:
        mod = LocalDpMod(1.0, 1.0, 1.0, 1e-5)
        found = []
        for _ in range(2):
            np.random.seed(7)  # noqa: NPY002 - a task's generators are seeded
            found.append(model(answer(mod, trained(START))))
        assert not np.array_equal(found[0], found[1])

    @pytest.mark.parametrize(
        ("make", "told"),
        [
            (lambda: LocalDpMod(0, 1, 1, 0.1), "clipping_norm is 0"),
            (lambda: LocalDpMod(1, -1, 1, 0.1), "sensitivity is -1"),
            (lambda: LocalDpMod(1, 1, 0, 0.1), "epsilon is 0"),
            (lambda: LocalDpMod(1, 1, 1, 0), "delta is 0"),
            (lambda: LocalDpMod(1, 1, 1, 2), "delta is 2"),
            (lambda: LocalDpMod(float("nan"), 1, 1, 0.1), "clipping_norm is nan"),
        ],
    )
    def test_values_that_cannot_be_are_refused_at_once(self, make: Callable[[], object], told: str) -> None:
        with pytest.raises(ValueError, match=told):
            make()


class TestSizes:
    def test_of_messages(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        msg = Message(RecordDict({"arrays": record([1, 2, 3])}), dst_node_id=2, message_type="train")
        answer(message_size_mod, trained(record([1, 2])), msg)
        assert [entry.getMessage() for entry in caplog.records] == [
            "Incoming message size: 13 bytes",  # three floats, and a name of one character
            "Outgoing message size: 29 bytes",  # two floats with their name, and 12 + 8 of the metric
        ]

    def test_of_arrays(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        msg = Message(RecordDict({"model": record([[1, 2, 3]] * 2, 5)}), dst_node_id=2, message_type="train")
        answer(arrays_size_mod, trained(record([1, 2])), msg)
        assert [entry.getMessage() for entry in caplog.records] == [
            "Incoming ArrayRecord 'model': 7 elements, 30 bytes",
            "Arrays received: 30 bytes",
            "Outgoing ArrayRecord 'arrays': 2 elements, 9 bytes",
            "Arrays sent: 9 bytes",
        ]

    @pytest.mark.parametrize("mod", [message_size_mod, arrays_size_mod])
    def test_an_error_has_none(self, mod: Mod, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        assert answer(mod, failing).has_error()
        assert caplog.records[-1].getMessage().endswith(": 0 bytes")


def test_mods_run_in_order_around_one_handler_and_all(caplog: pytest.LogCaptureFixture) -> None:
    """The clipping mod of one handler is inside of the app's, which sees what it made of the reply."""
    caplog.set_level(logging.INFO)
    seen: list[list[float]] = []

    def watching(msg: Message, ctxt: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(msg, ctxt)
        seen.extend(record["0"].numpy().tolist() for record in reply.content.array_records.values())
        return reply

    app = ClientApp(mods=[watching])
    app.train(mods=[fixedclipping_mod])(trained(record([7, 9])))
    app.evaluate()(trained(record([7, 9])))
    app(ask(), context())
    app(Message(ask().content, dst_node_id=2, message_type="evaluate"), context())
    assert seen == [[4, 5], [7, 9]]
