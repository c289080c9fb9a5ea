"""Named numbers of rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from flq.link.database import Tx
from flq.link.sql import load
from flq.wire.ids import NodeId, RunId

SQL: Final = load("metrics")


def record_in(tx: Tx, run_id: RunId, number: int, values: Mapping[str, float], node_id: NodeId | None = None) -> None:
    """Record numbers of round `number`, as a step of a transaction that holds the attempt."""
    if not values:
        return
    named = {"names": list(values), "values": [float(value) for value in values.values()]}
    tx.execute(SQL["record_metrics"], {"run_id": run_id, "round": number, "node_id": node_id, **named})


def finite(values: Mapping[str, float | list[float]]) -> dict[str, Any]:
    """Metrics for jsonb, which knows neither NaN nor infinity: those are written as text."""
    return {
        name: [_number(x) for x in value] if isinstance(value, list) else _number(value)
        for name, value in values.items()
    }


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Metrics from jsonb, the opposite of `finite`."""
    return {name: float(value) for name, value in values.items()}


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
