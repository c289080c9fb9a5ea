"""Tests wait for a named condition, never for an amount of time."""

from __future__ import annotations

import time
from collections.abc import Callable


def eventually(condition: Callable[[], object], *, timeout: float = 20.0, what: str = "the condition") -> None:
    """Return as soon as `condition` holds; fail, naming `what`, if it does not within `timeout` seconds."""
    began = time.monotonic()
    give_up = began + timeout
    while not condition():
        looked = time.monotonic()
        assert looked < give_up, f"not within {timeout} s: {what}"
        time.sleep(max(0.02, min(looked - began, 0.5)))  # what is waited for needs the processor too
        began = time.monotonic()
