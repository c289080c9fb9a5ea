"""Rounds of a legacy server as they are told to people: in its History, its log and the history of the run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from logging import INFO

from flq.apps.legacy.history import History
from flq.apps.legacy.translation import numbers
from flq.apps.legacy.typing import Metrics
from flq.apps.logger import log
from flq.apps.strategy.grids import DurableGrid
from flq.apps.strategy.history import history as named


def begin(grid: object, rounds: int) -> float:
    """So many rounds begin; returns the time that `end` takes."""
    if isinstance(grid, DurableGrid):
        grid.begin_training(rounds)
    return time.monotonic()


def centralized(history: History, grid: object, server_round: int, measured: tuple[float, Metrics] | None) -> None:
    """What the server has measured; None if it measures nothing."""
    if measured is None:
        return
    loss, metrics = measured
    log(INFO, "round %d: loss %s, %s", server_round, loss, metrics)
    history.add_loss_centralized(server_round, loss)
    history.add_metrics_centralized(server_round, metrics)
    _note(grid, server_round, named(server=numbers({"loss": loss, **metrics})))


def fitted(history: History, grid: object, server_round: int, metrics: Metrics) -> None:
    """What the clients have measured while they trained."""
    history.add_metrics_distributed_fit(server_round, metrics)
    _note(grid, server_round, named(train=numbers(metrics)))


def evaluated(history: History, grid: object, server_round: int, loss: float | None, metrics: Metrics) -> None:
    """What the clients have measured; without a loss there is nothing to tell."""
    if loss is None:
        return
    log(INFO, "round %d: the clients' loss %s, %s", server_round, loss, metrics)
    history.add_loss_distributed(server_round, loss)
    history.add_metrics_distributed(server_round, metrics)
    _note(grid, server_round, named(evaluate=numbers({"loss": loss, **metrics})))


def end(history: History, rounds: int, begun: float) -> float:
    """Log the history; returns the seconds since `begun`."""
    seconds = time.monotonic() - begun
    log(INFO, "%d rounds have ended after %.2f s", rounds, seconds)
    for line in repr(history).splitlines():
        log(INFO, "%s", line.expandtabs(4))
    return seconds


def _note(grid: object, server_round: int, metrics: Mapping[str, float]) -> None:
    if isinstance(grid, DurableGrid) and metrics:
        grid.record_metrics(server_round, metrics)
