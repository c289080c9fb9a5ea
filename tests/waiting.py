"""Tests wait for a named condition, never for an amount of time."""

from __future__ import annotations

import time
from collections.abc import Callable


def eventually(condition: Callable[[], object], *, timeout: float = 20.0, what: str = "the condition") -> None:
    """Return as soon as `condition` holds; fail, naming `what`, if it does not within `timeout` seconds."""
    give_up = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < give_up, f"not within {timeout} s: {what}"
        time.sleep(0.02)
