"""Fair federated averaging: nodes with a larger loss count more."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from logging import INFO
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from flq.apps.blocks import BLOCK, Workers, blocks, finite, narrowed, working_dtype
from flq.apps.logger import log
from flq.apps.strategy.aggregate import MetricsAggregation
from flq.apps.strategy.fedavg import FedAvg
from flq.apps.strategy.fold import Unusable, array_kinds
from flq.apps.strategy.grids import MessageGrid
from flq.apps.strategy.mean import NotFinite
from flq.apps.strategy.options import RoundOptions
from flq.errors import StrategyError
from flq.wire.message import Message
from flq.wire.records import Array, ArrayRecord, ConfigRecord, MetricRecord

_SMALLEST_LOSS = 1e-10
"""Is added to each loss, so that a negative power of 0 is a number."""


class QFedAvg(FedAvg):
    """Steps to where the losses of the nodes become more alike.

    Li et al. (2020), "Fair Resource Allocation in Federated Learning", algorithm 2 (q-FedAvg),
    https://arxiv.org/abs/1905.10497: with L = 1 / client_learning_rate, F_k the loss of node k and w_k its model,

        D_k = F_k^q L (w - w_k),    h_k = q F_k^(q - 1) |L (w - w_k)|^2 + L F_k^q,    w <- w - sum D_k / sum h_k

    Replies are folded one at a time into the sum of the D_k. A reply whose loss is missing, negative or not finite is
    left out.

    Parameters
    ----------
    client_learning_rate
        The learning rate that the nodes train with.
    q
        How much fairness counts: 0 is the plain mean of the models.
    train_loss_key
        The metric that has the loss of the model that the node got, on its own data.

    All others are those of `FedAvg`.

    """

    current_arrays: ArrayRecord | None = None
    """The model that the nodes got in this round."""

    def __init__(  # noqa: PLR0917 - the order of Flower (flwr), for apps that give them by position
        self,
        client_learning_rate: float,
        q: float = 0.1,
        train_loss_key: str = "train_loss",
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: MetricsAggregation | None = None,
        evaluate_metrics_aggr_fn: MetricsAggregation | None = None,
        **options: Unpack[RoundOptions],
    ) -> None:
        super().__init__(
            fraction_train,
            fraction_evaluate,
            min_train_nodes,
            min_evaluate_nodes,
            min_available_nodes,
            weighted_by_key,
            arrayrecord_key,
            configrecord_key,
            train_metrics_aggr_fn,
            evaluate_metrics_aggr_fn,
            **options,
        )
        self.client_learning_rate = client_learning_rate
        self.q = q
        self.train_loss_key = train_loss_key

    def summary(self) -> None:
        """Log the settings of the strategy."""
        told = "q %g; the nodes train with learning rate %g and tell their loss as %r"
        log(INFO, told, self.q, self.client_learning_rate, self.train_loss_key)
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: MessageGrid
    ) -> Iterable[Message]:
        """As FedAvg does; keeps the model, which the step begins at."""
        self.current_arrays = ArrayRecord(arrays)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The model after the step, and the weighted mean of each metric. Raises `StrategyError` as FedAvg does."""
        model = self.current_arrays
        if model is None:
            raise StrategyError("configure_train has to be called before aggregate_train: it keeps the model")
        if self.client_learning_rate <= 0:
            raise StrategyError(f"client_learning_rate is {self.client_learning_rate}; it must be positive")
        lipschitz = 1 / self.client_learning_rate

        def step() -> FairStep:
            return FairStep(
                model, q=self.q, lipschitz=lipschitz, float64=self.float64_accumulator, threads=self.threads
            )

        return self._folded(server_round, replies, step, measure=self._loss, expected=array_kinds(model))

    def _loss(self, metrics: MetricRecord) -> float:
        loss = metrics.get(self.train_loss_key)
        if loss is None:
            raise Unusable(f"its metrics have no {self.train_loss_key!r}, the loss that it counts by")
        if isinstance(loss, list) or not math.isfinite(loss) or loss < 0:
            raise Unusable(f"its {self.train_loss_key!r} is {loss}; a loss to count by is a number from 0 on")
        return float(loss)


class FairStep:
    """Folds the models of nodes, each with its loss, into one step from `model`. See `QFedAvg`."""

    def __init__(
        self, model: ArrayRecord, *, q: float, lipschitz: float, float64: bool = False, threads: int = 1
    ) -> None:
        self._model = {key: array.view() for key, array in model.items()}
        self._q = q
        self._lipschitz = lipschitz
        self._workers = Workers(threads)
        self._steps = {
            key: np.zeros(array.size, working_dtype(array.dtype, float64=float64)) for key, array in self._model.items()
        }
        self._size = 0.0

    def add(self, arrays: Mapping[str, NDArray[Any]], loss: float, /) -> None:
        """Fold a model in. Raises `Unusable` if it has other arrays than the one that the step begins at."""
        if arrays.keys() != self._model.keys():
            raise Unusable("its arrays are not those of the model that the node got")
        loss += _SMALLEST_LOSS
        factor = loss**self._q
        squares = math.fsum(self._fold(key, arrays[key], self._lipschitz * factor) for key in arrays)
        self._size += self._q * loss ** (self._q - 1) * self._lipschitz**2 * squares + self._lipschitz * factor

    def _fold(self, key: str, array: NDArray[Any], factor: float) -> float:
        """Add `factor` (w - w_k) to the step; returns the squared norm of w - w_k."""
        ours, theirs, step = self._model[key].reshape(-1), array.reshape(-1), self._steps[key]
        if array.shape != self._model[key].shape:
            raise Unusable(f"its array {key!r} has not the shape of the one that the node got")

        def fold(part: slice) -> float:
            squares, scratch = 0.0, np.empty(min(BLOCK, part.stop - part.start))
            with np.errstate(over="ignore", invalid="ignore"):
                for block in blocks(part):
                    difference = scratch[: block.stop - block.start]
                    np.subtract(ours[block], theirs[block], out=difference, dtype=np.float64)
                    squares += float(np.dot(difference, difference))
                    difference *= factor
                    step[block] += difference
            return squares

        return sum(self._workers.each_part(step.size, fold))

    def finish(self) -> ArrayRecord:
        """The model after the step. Raises `NotFinite`."""
        record = ArrayRecord()
        for key, model in self._model.items():
            step = self._steps.pop(key)
            with np.errstate(all="ignore"):
                if self._size:  # else nothing was folded in
                    step /= -self._size
                step += model.reshape(-1)
            if not finite(step, self._workers) or not math.isfinite(self._size):
                raise NotFinite(
                    f"the step makes values of the array {key!r} infinite or NaN",
                    hint="the updates of the nodes are too large; float64_accumulator=True adds them up in float64",
                )
            record[key] = Array.owning(narrowed(step, model.dtype).reshape(model.shape))
        self._workers.close()
        return record
