"""Mods that log how much comes in and goes out."""

from __future__ import annotations

import math
from logging import INFO

from flq.apps.context import Context
from flq.apps.logger import log
from flq.apps.mods.chain import ClientAppCallable
from flq.wire.message import Message


def message_size_mod(msg: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Log the sizes of the message and of the reply: all records, without names and framing, in bytes."""
    log(INFO, "Incoming message size: %d bytes", _record_bytes(msg))
    reply = call_next(msg, context)
    log(INFO, "Outgoing message size: %d bytes", _record_bytes(reply))
    return reply


def arrays_size_mod(msg: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Log for each ArrayRecord of the message and of the reply how many elements and bytes its arrays have."""
    _log_arrays("Incoming", "received", msg)
    reply = call_next(msg, context)
    _log_arrays("Outgoing", "sent", reply)
    return reply


def _record_bytes(message: Message) -> int:
    return sum(record.count_bytes() for record in message.content.values()) if message.has_content() else 0


def _log_arrays(which: str, done: str, message: Message) -> None:
    records = message.content.array_records if message.has_content() else {}
    total = 0
    for name, record in records.items():
        elements = sum(math.prod(array.shape) for array in record.values())
        total += record.count_bytes()
        log(INFO, "%s ArrayRecord %r: %d elements, %d bytes", which, name, elements, record.count_bytes())
    log(INFO, "Arrays %s: %d bytes", done, total)
