"""What every strategy with rounds can be told beyond what Flower (flwr) knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict


class RoundOptions(TypedDict, total=False):
    """Keyword arguments that all strategies pass on to `FedAvg`, where they are described."""

    round_deadline: float | None
    min_replies: int
    over_select: float
    node_labels: Mapping[str, str] | None
    selection_seed: int | None
    float64_accumulator: bool
    threads: int | None
