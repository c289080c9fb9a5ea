"""Loggers of flq's own processes. The output of apps does not pass here: it goes to `flq.logs`."""

from __future__ import annotations

import logging
import sys

FORMAT = "%(asctime)s %(levelname).1s %(name)s %(message)s"


def get(name: str) -> logging.Logger:
    """The logger of a module of flq, `name` being its `__name__`."""
    return logging.getLogger(name)


def to_stderr(level: int = logging.INFO) -> None:
    """Write flq's log lines to stderr: for long-running processes, called once at their start."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(FORMAT))
    root = logging.getLogger("flq")
    root.setLevel(level)
    root.handlers[:] = [handler]
    root.propagate = False
