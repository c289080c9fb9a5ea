"""A training's memory: what is committed after each round, and how another attempt of the run goes on from it.

A run may train several times, one after the other. A checkpoint holds the results of all trainings up to its own, so
that an attempt that starts in the middle of the third one answers the first two from there:

    0.arrays 0.train.1 0.evaluate.1 0.server.0 ... 0.end     the first training: model, metrics, what it ended with
    1.arrays ...                                             the one that the checkpoint was made in
    state.*                                                  the strategy's own state
    flq                                                      which training, which round
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flq.apps.grid import SavedRound
from flq.apps.strategy.grids import DurableGrid
from flq.apps.strategy.result import Result
from flq.errors import StrategyError
from flq.wire.records import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

_POSITION = "flq"
_STATE = "state."


@dataclass(slots=True)
class Progress:
    """How far a training has come: `result` after `round` rounds, and the strategy's own state."""

    round: int
    result: Result
    state: RecordDict = field(default_factory=RecordDict)
    finished: bool = False


class Journal:
    """Remembers nothing: for a Grid that is none of flq's."""

    seed: str | None = None
    """What random choices of the training are seeded with, the same in every attempt."""

    def resume(self) -> Progress | None:
        """What an earlier attempt has committed of this training."""
        return None

    def commit(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Record a finished round."""

    def note(self, server_round: int, metrics: Mapping[str, float]) -> None:
        """Record named numbers of a round that has not ended."""


class DurableJournal(Journal):
    """Remembers by the commits of a Grid."""

    def __init__(self, grid: DurableGrid, rounds: int) -> None:
        self._grid = grid
        training = grid.begin_training(rounds)
        self._index = training.index
        self.seed = f"{training.seed}/{training.index}"
        self._former = RecordDict()

    def resume(self) -> Progress | None:
        """What an earlier attempt has committed of this training; keeps the results of those before it."""
        saved = self._grid.last_checkpoint()
        if saved is None or _POSITION not in saved.content:
            return None
        index, server_round = _position(saved.content)
        for name, record in saved.content.items():
            number = _training_of(name)
            if number is not None and number < self._index:
                self._former[name] = record
        if index < self._index:
            self._former[f"{index}.end"] = ConfigRecord({"sequence": saved.next_sequence})
            return None
        return self._rest(saved, server_round) if index == self._index else self._ended(saved)

    def _rest(self, saved: SavedRound, server_round: int) -> Progress:
        self._grid.continue_at(saved.next_sequence)
        content = saved.content
        state = RecordDict({name.removeprefix(_STATE): content[name] for name in content if name.startswith(_STATE)})
        return Progress(server_round, _result(content, self._index), state)

    def _ended(self, saved: SavedRound) -> Progress:
        """The training was over when the checkpoint of a later one was made."""
        end = saved.content[f"{self._index}.end"]["sequence"]
        if not isinstance(end, int):
            raise StrategyError("the checkpoint of the run cannot be read")
        self._grid.continue_at(end)
        return Progress(0, _result(saved.content, self._index), finished=True)

    def commit(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Record a finished round; round 0 is the initial model. Exactly one commit of a round counts."""
        if progress.round == 0 and self._index > 0:
            return  # this round is the last one of the training before, which is committed
        content = RecordDict(dict(self._former))
        _add_result(content, progress.result, self._index)
        for name, record in progress.state.items():
            content[f"{_STATE}{name}"] = record
        content[_POSITION] = ConfigRecord({"training": self._index, "round": progress.round})
        self._grid.commit_round(progress.round, content, metrics)

    def note(self, server_round: int, metrics: Mapping[str, float]) -> None:
        """Record named numbers of a round that has not ended."""
        if metrics:
            self._grid.record_metrics(server_round, metrics)


def _position(content: RecordDict) -> tuple[int, int]:
    position = content[_POSITION]
    training, server_round = position["training"], position["round"]
    if not isinstance(training, int) or not isinstance(server_round, int):
        raise StrategyError("the checkpoint of the run cannot be read")
    return training, server_round


def _training_of(name: str) -> int | None:
    number, dot, _ = name.partition(".")
    return int(number) if dot and number.isdecimal() else None


_HISTORIES = {
    "train": "train_metrics_clientapp",
    "evaluate": "evaluate_metrics_clientapp",
    "server": "evaluate_metrics_serverapp",
}


def _add_result(content: RecordDict, result: Result, index: int) -> None:
    content[f"{index}.arrays"] = result.arrays
    for kind, attribute in _HISTORIES.items():
        for server_round, record in getattr(result, attribute).items():
            content[f"{index}.{kind}.{server_round}"] = record


def _result(content: RecordDict, index: int) -> Result:
    arrays = content[f"{index}.arrays"]
    if not isinstance(arrays, ArrayRecord):
        raise StrategyError("the checkpoint of the run cannot be read")
    result = Result(arrays=arrays)
    for kind, attribute in _HISTORIES.items():
        prefix = f"{index}.{kind}."
        metrics: dict[int, MetricRecord] = getattr(result, attribute)
        for name, record in content.metric_records.items():
            if name.startswith(prefix):
                metrics[int(name.removeprefix(prefix))] = record
    return result
