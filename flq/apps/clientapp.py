"""The client side of an app."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from flq.apps.context import Context
from flq.apps.lifespan import Lifespan, check_lifespan, lifespan
from flq.apps.mods import ClientAppCallable, Mod, make_mod_chain
from flq.errors import AppError
from flq.wire.message import DEFAULT_ACTION, Message, MessageType, split_message_type

if TYPE_CHECKING:
    from flq.apps.legacy.client import ClientFn

Decorator = Callable[[ClientAppCallable], ClientAppCallable]


class ClientApp:
    """Answers the messages of a ServerApp on a node: one handler for each message type.

    Parameters
    ----------
    client_fn
        Makes a client whose `fit` and `evaluate` answer all messages: for older apps, see `flq.apps.legacy`.
    mods
        Functions around every handler, the first one outermost, outside of a handler's own mods.

    Examples
    --------
    >>> from flq.apps import ClientApp, Context, Message, MetricRecord, RecordDict
    >>> app = ClientApp()
    >>> @app.train()
    ... def train(msg: Message, context: Context) -> Message:
    ...     return Message(RecordDict({"metrics": MetricRecord({"num-examples": 10})}), reply_to=msg)

    """

    def __init__(self, client_fn: ClientFn | None = None, mods: Sequence[Mod] | None = None) -> None:
        self._mods = tuple(mods or ())
        self._answer = None if client_fn is None else make_mod_chain(_client_handler(client_fn), self._mods)
        self._handlers: dict[tuple[str, str], ClientAppCallable] = {}
        self._chains: dict[tuple[str, str], ClientAppCallable] = {}
        self._lifespan: Lifespan | None = None

    @property
    def message_types(self) -> list[str]:
        """The types of messages that it answers: `train`, `query.histogram`, ..."""
        return sorted(map(_spelled, self._handlers))

    def train(self, action: str = DEFAULT_ACTION, *, mods: Sequence[Mod] | None = None) -> Decorator:
        """Register the handler of `train` messages, or of `train.<action>`."""
        return self._register(MessageType.TRAIN, action, mods)

    def evaluate(self, action: str = DEFAULT_ACTION, *, mods: Sequence[Mod] | None = None) -> Decorator:
        """Register the handler of `evaluate` messages, or of `evaluate.<action>`."""
        return self._register(MessageType.EVALUATE, action, mods)

    def query(self, action: str = DEFAULT_ACTION, *, mods: Sequence[Mod] | None = None) -> Decorator:
        """Register the handler of `query` messages, or of `query.<action>`."""
        return self._register(MessageType.QUERY, action, mods)

    def lifespan(self) -> Callable[[Lifespan], Lifespan]:
        """Register a generator that runs around each message: set up, `yield`, tear down."""

        def register(function: Lifespan) -> Lifespan:
            if self._lifespan is not None:
                raise ValueError("the ClientApp has a lifespan already")
            self._lifespan = check_lifespan(function)
            return function

        return register

    def _register(self, category: str, action: str, mods: Sequence[Mod] | None) -> Decorator:
        if callable(action):
            raise TypeError(f"write @app.{category}(), with parentheses")
        if self._answer is not None:
            raise ValueError(f"the ClientApp has a client_fn; it cannot have a handler of {category} messages, too")
        key = split_message_type(f"{category}.{action}")

        def register(handler: ClientAppCallable) -> ClientAppCallable:
            if key in self._handlers:
                raise ValueError(
                    f"the ClientApp has a handler for {_spelled(key)} already: {_named(self._handlers[key])}"
                )
            self._handlers[key] = handler
            self._chains[key] = make_mod_chain(handler, (*self._mods, *(mods or ())))
            return handler

        return register

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer `message`. Raises `AppError` if there is no handler or it returns no Message, else what it raises."""
        key = split_message_type(message.metadata.message_type)
        chain = self._answer or self._chains.get(key)
        if chain is None:
            known = ", ".join(self.message_types) or "none"
            raise AppError(
                f"the ClientApp has no handler for {_spelled(key)}; it has: {known}",
                hint=f"register one with {_decorator(key)}",
            )
        with lifespan(self._lifespan, context):
            reply = chain(message, context)
        if not isinstance(reply, Message):
            raise AppError(
                f"the handler of {_spelled(key)}{self._handler_name(key)} returned {type(reply).__name__}",
                hint="a handler returns a Message: return Message(content, reply_to=msg)",
            )
        return reply

    def _handler_name(self, key: tuple[str, str]) -> str:
        return f", {_named(self._handlers[key])}," if key in self._handlers else " or one of its mods"


def _client_handler(client_fn: ClientFn) -> ClientAppCallable:
    def handler(message: Message, context: Context) -> Message:
        from flq.apps.legacy.client import answer

        return answer(client_fn, message, context)

    return handler


def _spelled(key: tuple[str, str]) -> str:
    category, action = key
    return category if action == DEFAULT_ACTION else f"{category}.{action}"


def _decorator(key: tuple[str, str]) -> str:
    category, action = key
    return f"@app.{category}()" if action == DEFAULT_ACTION else f'@app.{category}("{action}")'


def _named(handler: ClientAppCallable) -> str:
    return f"{getattr(handler, '__module__', '?')}.{getattr(handler, '__qualname__', repr(handler))}"
