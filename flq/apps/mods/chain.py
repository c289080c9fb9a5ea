"""The chaining of mods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce

from flq.apps.context import Context
from flq.wire.message import Message

ClientAppCallable = Callable[[Message, Context], Message]
"""Handles a message: a handler, or a handler with mods around it."""

Mod = Callable[[Message, Context, ClientAppCallable], Message]
"""Sees a message before and its reply after the rest of the chain, which it calls with `call_next(msg, context)`."""


def make_mod_chain(handler: ClientAppCallable, mods: Sequence[Mod]) -> ClientAppCallable:
    """`handler` with `mods` around it, the first one outermost."""
    return reduce(_around, reversed(mods), handler)


def _around(call_next: ClientAppCallable, mod: Mod) -> ClientAppCallable:
    return partial(_call, mod, call_next)


def _call(mod: Mod, call_next: ClientAppCallable, message: Message, context: Context) -> Message:
    return mod(message, context, call_next)
