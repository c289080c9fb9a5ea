"""What a training has brought."""

from __future__ import annotations

from dataclasses import dataclass, field

from flq.wire.records import ArrayRecord, MetricRecord


@dataclass
class Result:
    """The model and the metrics of each round.

    Attributes
    ----------
    arrays
        The model after the last round.
    train_metrics_clientapp, evaluate_metrics_clientapp
        What the strategy made of the nodes' metrics, by round from 1 on.
    evaluate_metrics_serverapp
        What `evaluate_fn` returned, by round; round 0 is the initial model.

    """

    arrays: ArrayRecord = field(default_factory=ArrayRecord)
    train_metrics_clientapp: dict[int, MetricRecord] = field(default_factory=dict)
    evaluate_metrics_clientapp: dict[int, MetricRecord] = field(default_factory=dict)
    evaluate_metrics_serverapp: dict[int, MetricRecord] = field(default_factory=dict)

    def __repr__(self) -> str:
        lines = [f"Result: {len(self.arrays)} arrays, {self.arrays.count_bytes()} bytes"]
        for title, metrics in (
            ("train (nodes)", self.train_metrics_clientapp),
            ("evaluate (nodes)", self.evaluate_metrics_clientapp),
            ("evaluate (server)", self.evaluate_metrics_serverapp),
        ):
            lines += [f"  {title}, round {number}: {dict(record)}" for number, record in sorted(metrics.items())]
        return "\n".join(lines)
