"""What goes wrong while measuring."""

from __future__ import annotations


class BenchmarkError(Exception):
    """A figure could not be taken; the message says why, and what to do."""
