"""Lifespans: a generator of the app that sets up before its one `yield` and tears down behind it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flq.apps.context import Context
from flq.errors import AppError

Lifespan = Callable[[Context], Iterator[None]]


def check_lifespan(function: Lifespan) -> Lifespan:
    """Raise `TypeError` unless `function` is a generator function."""
    if not inspect.isgeneratorfunction(function):
        raise TypeError(f"a lifespan is a generator function; {function!r} never yields")
    return function


@contextmanager
def lifespan(function: Lifespan | None, context: Context) -> Iterator[None]:
    """Run the part before the `yield`, then the block, then the part behind it, even if the block failed.

    Raises `AppError` unless the generator yields exactly once.
    """
    if function is None:
        yield
        return
    steps = function(context)
    try:
        next(steps)
    except StopIteration:
        raise AppError("the lifespan never yielded; it must yield exactly once") from None
    try:
        yield
    finally:
        _finish(steps)


def _finish(steps: Iterator[None]) -> None:
    for _ in steps:
        raise AppError("the lifespan yielded twice; it must yield exactly once")
