"""What the rounds of a legacy server have brought."""

from __future__ import annotations

from flq.apps.legacy.typing import Metrics, Scalar

Series = dict[str, list[tuple[int, Scalar]]]
"""The values of each metric with their rounds."""


class History:
    """Losses and metrics by round: those of the server are centralized, those of the clients distributed."""

    def __init__(self) -> None:
        self.losses_distributed: list[tuple[int, float]] = []
        self.losses_centralized: list[tuple[int, float]] = []
        self.metrics_distributed_fit: Series = {}
        self.metrics_distributed: Series = {}
        self.metrics_centralized: Series = {}

    def add_loss_distributed(self, server_round: int, loss: float) -> None:
        """Add a loss that the clients have measured."""
        self.losses_distributed.append((server_round, loss))

    def add_loss_centralized(self, server_round: int, loss: float) -> None:
        """Add a loss that the server has measured."""
        self.losses_centralized.append((server_round, loss))

    def add_metrics_distributed_fit(self, server_round: int, metrics: Metrics) -> None:
        """Add metrics of the clients' training."""
        _add(self.metrics_distributed_fit, server_round, metrics)

    def add_metrics_distributed(self, server_round: int, metrics: Metrics) -> None:
        """Add metrics of the clients' evaluation."""
        _add(self.metrics_distributed, server_round, metrics)

    def add_metrics_centralized(self, server_round: int, metrics: Metrics) -> None:
        """Add metrics of the server's evaluation."""
        _add(self.metrics_centralized, server_round, metrics)

    def __repr__(self) -> str:
        lines: list[str] = []
        for title, losses in (("distributed", self.losses_distributed), ("centralized", self.losses_centralized)):
            if losses:
                lines.append(f"History (loss, {title}):")
                lines += [f"\tround {number}: {loss}" for number, loss in losses]
        for title, series in (
            ("distributed, fit", self.metrics_distributed_fit),
            ("distributed, evaluate", self.metrics_distributed),
            ("centralized", self.metrics_centralized),
        ):
            if series:
                lines.append(f"History (metrics, {title}):")
                lines += [f"\t{name}: {values}" for name, values in series.items()]
        return "\n".join(lines) + "\n" if lines else ""


def _add(series: Series, server_round: int, metrics: Metrics) -> None:
    for name, value in metrics.items():
        series.setdefault(name, []).append((server_round, value))
