"""Small plots in text."""

from __future__ import annotations

import math
from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"
GAP = "·"


def sparkline(values: Sequence[float | None], *, width: int = 60) -> str:
    """One character for each value, lowest to highest; more than `width` values are thinned out."""
    shown = _thinned(values, width)
    known = [value for value in shown if value is not None and math.isfinite(value)]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)
    return "".join(_block(value, low, span) for value in shown)


def _block(value: float | None, low: float, span: float) -> str:
    if value is None or not math.isfinite(value):
        return GAP
    share = (value - low) / span if span else 0.5
    return BLOCKS[min(len(BLOCKS) - 1, int(share * len(BLOCKS)))]


def _thinned(values: Sequence[float | None], width: int) -> list[float | None]:
    if len(values) <= width:
        return list(values)
    step = (len(values) - 1) / (width - 1)
    return [values[round(index * step)] for index in range(width)]
