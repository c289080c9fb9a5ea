"""What strategies share that take the mean of the replies as a step, and carry something from round to round."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flq.apps.blocks import Workers, blocks, finite, narrowed, working_dtype
from flq.apps.strategy.fedavg import FedAvg
from flq.apps.strategy.fold import array_kinds
from flq.apps.strategy.grids import MessageGrid
from flq.errors import StrategyError
from flq.wire.message import Message
from flq.wire.records import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

Block = dict[str, NDArray[Any]]
"""Some elements of an array, of its update and of what belongs to it: `model`, `delta` and the names of the state."""

Step = Callable[[Block], None]
"""Makes of `model` the new one, and changes the state, in place; `delta` may be overwritten."""


class ServerOptimizer(FedAvg):
    """FedAvg whose mean is not the new model, but says where the server steps to from the one that the nodes got.

    `state_names` are the records that the step carries from round to round, one array for each of the model's; they
    are committed with every round, so that a restarted run goes on with them.
    """

    state_names: tuple[str, ...] = ()

    current_arrays: ArrayRecord | None = None
    """The model that the nodes got in this round."""

    _state: Mapping[str, ArrayRecord] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: MessageGrid
    ) -> Iterable[Message]:
        """As FedAvg does; keeps the model, which the step begins at."""
        self.current_arrays = ArrayRecord(arrays)
        return super().configure_train(server_round, arrays, config, grid)

    def save_state(self) -> RecordDict:
        """What the step carries from round to round; nothing before the first one."""
        return RecordDict(dict(self._state))

    def load_state(self, state: RecordDict) -> None:
        """Take up what `save_state` returned after the last committed round."""
        self._state = dict(state.array_records)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The model after the step, and the weighted mean of each metric. Raises `StrategyError` as FedAvg does."""
        mean, metrics = super().aggregate_train(server_round, replies)
        return None if mean is None else self._stepped(server_round, mean), metrics

    def step(self, server_round: int) -> Step:
        """How to step in this round."""
        raise NotImplementedError

    def first_state(self, name: str, delta: NDArray[Any]) -> NDArray[Any]:  # noqa: ARG002 - others look at the name
        """What a record of the state begins with: zeros, of which the first step makes what it needs."""
        return np.zeros(delta.size, delta.dtype)

    def _stepped(self, server_round: int, mean: ArrayRecord) -> ArrayRecord:
        model = self.current_arrays
        if model is None:
            raise StrategyError("configure_train has to be called before aggregate_train: it keeps the model")
        self._check(mean, model)
        step, new, workers = self.step(server_round), ArrayRecord(), Workers(self.threads)
        state = {name: ArrayRecord() for name in self.state_names}
        for key in list(mean):
            parts = self._parts(key, model[key], mean.pop(key))
            _step_array(step, parts, workers)
            if not finite(parts["model"]):
                raise StrategyError(
                    f"round {server_round}: the step makes values of the array {key!r} infinite or NaN",
                    hint="smaller learning rates make smaller steps; tau must be more than 0",
                )
            shape, dtype = model[key].shape, np.dtype(model[key].dtype)
            new[key] = Array.owning(narrowed(parts["model"], dtype).reshape(shape))
            for name, record in state.items():
                record[key] = Array.owning(parts[name].reshape(shape))
        self._state = state
        workers.close()
        return new

    def _check(self, mean: ArrayRecord, model: ArrayRecord) -> None:
        if array_kinds(mean) != array_kinds(model):
            raise StrategyError(
                "the nodes' models have other names, dtypes or shapes than the one that they got, so there is no step"
                " from one to the other",
                hint="a ClientApp returns the arrays that it was sent, trained",
            )
        for record in self._state.values():
            if {(key, shape) for key, _, shape in array_kinds(record)} != {
                (key, shape) for key, _, shape in array_kinds(model)
            }:
                raise StrategyError(
                    "the strategy carries what belongs to another model", hint="make a new one for each model"
                )

    def _parts(self, key: str, model: Array, mean: Array) -> dict[str, NDArray[Any]]:
        """The array, its update and its state, flat, all in the dtype that is worked in, and our own."""
        dtype = working_dtype(np.dtype(model.dtype), float64=self.float64_accumulator)
        if dtype.kind == "c":
            raise StrategyError(f"{type(self).__name__} has no rule for complex arrays; {key!r} is one")
        parts = {"model": model.view().reshape(-1).astype(dtype), "delta": mean.view().reshape(-1).astype(dtype)}
        for name in self.state_names:
            before = self._state.get(name)
            parts[name] = (
                self.first_state(name, parts["delta"])
                if before is None
                else before[key].view().reshape(-1).astype(dtype)
            )
        return parts


def _step_array(step: Step, parts: dict[str, NDArray[Any]], workers: Workers) -> None:
    def work(part: slice) -> None:
        for block in blocks(part):
            some = {name: array[block] for name, array in parts.items()}
            with np.errstate(all="ignore"):  # what is not finite is looked for afterwards
                np.subtract(some["delta"], some["model"], out=some["delta"])
                step(some)

    workers.each_part(parts["model"].size, work)
