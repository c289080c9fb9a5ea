"""Mods for clients made by a `client_fn`: the same as those of `flq.apps.mods`, for the records of legacy answers."""

from __future__ import annotations

from flq.apps import mods
from flq.apps.clipping import NORM_BIT
from flq.apps.context import Context
from flq.apps.mods import ClientAppCallable
from flq.wire.message import Message, MessageType
from flq.wire.records import MetricRecord, RecordDict

_METRICS = "fitres.metrics"


def fixedclipping_mod(msg: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Scale the update of a reply to `train` down to the `clipping_norm` of the configuration; others pass."""
    if msg.metadata.message_type != MessageType.TRAIN:
        return call_next(msg, context)
    return mods.fixedclipping_mod(msg, context, call_next)


def adaptiveclipping_mod(msg: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """The same, and say in the client's metric `norm_bit` whether it had to be: 1, or 0."""
    if msg.metadata.message_type != MessageType.TRAIN:
        return call_next(msg, context)
    answer: list[Message] = []

    def with_one_metric_record(request: Message, inner: Context) -> Message:
        reply = call_next(request, inner)
        answer.append(reply)
        if reply.has_error():
            return reply
        arrays = dict(reply.content.array_records)
        return Message(RecordDict({**arrays, NORM_BIT: MetricRecord()}), reply_to=request)

    clipped = mods.adaptiveclipping_mod(msg, context, with_one_metric_record)
    if clipped.has_error():
        return clipped
    reply = answer[0]
    for name, record in clipped.content.array_records.items():
        reply.content[name] = record
    reply.content.config_records[_METRICS][NORM_BIT] = int(clipped.content.metric_records[NORM_BIT][NORM_BIT])  # type: ignore[arg-type]
    return reply


class LocalDpMod(mods.LocalDpMod):
    """Local differential privacy for replies to `train`; others pass."""

    def __call__(self, msg: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Answer by the rest of the chain, and clip the reply and add noise."""
        if msg.metadata.message_type != MessageType.TRAIN:
            return call_next(msg, context)
        return super().__call__(msg, context, call_next)
