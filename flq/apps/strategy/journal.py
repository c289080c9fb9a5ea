"""A training's memory: what is committed after each round, and how another attempt of the run goes on from it.

A run may train several times, one after the other. A checkpoint holds the results of all trainings up to its own, so
that an attempt that starts in the middle of the third one answers the first two from there:

    0.arrays 0.history 0.end    the first training: model, metrics of its rounds, what it ended with
    1.arrays ...                the one that the checkpoint was made in
    state.*                     the strategy's own state
    flq                         which training, which round

The metrics are lines of JSON, one for each round, in pages: arrays of bytes. A full page never changes again and is an
object of its own, which is read when an attempt goes on from it. So a commit costs the same after thousands of rounds
as after ten, and a ServerApp does not grow.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flq.apps.grid import SavedRound
from flq.apps.strategy.grids import DurableGrid
from flq.apps.strategy.result import Result
from flq.errors import StrategyError
from flq.wire.records import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

_POSITION = "flq"
_STATE = "state."
_HISTORY = ".history"
_PAGE_BYTES = 16 << 10
"""Each commit writes the last page, which is not full, and a reference to each of the others."""
_HISTORIES = ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp")


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
        self._diary = _Diary(grid.stored)

    def resume(self) -> Progress | None:
        """What an earlier attempt has committed of this training; keeps the results of those before it."""
        saved = self._grid.last_checkpoint()
        if saved is None or _POSITION not in saved.content:
            return None
        index, server_round = _position(saved.content)
        for name, record in saved.content.items():
            number = _training_of(name)
            if number is not None and number < self._index:
                self._former[name] = self._kept(saved.content, name) if name.endswith(_HISTORY) else record
        if index < self._index:
            self._former[f"{index}.end"] = saved.position
            return None
        return self._rest(saved, server_round) if index == self._index else self._ended(saved)

    def _rest(self, saved: SavedRound, server_round: int) -> Progress:
        self._grid.continue_at(saved.position)
        content = saved.content
        state = RecordDict({name.removeprefix(_STATE): content[name] for name in content if name.startswith(_STATE)})
        history = self._kept(content, f"{self._index}{_HISTORY}")
        self._diary = _Diary(self._grid.stored, list(history.values()), server_round + 1)
        return Progress(server_round, _result(content, self._index), state)

    def _kept(self, content: RecordDict, name: str) -> ArrayRecord:
        """A history of a checkpoint, whose full pages go into the next commit as the objects that they are."""
        history = _array_record(content, name)
        last = len(history) - 1
        return ArrayRecord(
            {key: page if at == last else self._grid.stored(page) for at, (key, page) in enumerate(history.items())}
        )

    def _ended(self, saved: SavedRound) -> Progress:
        """The training was over when the checkpoint of a later one was made."""
        end = saved.content[f"{self._index}.end"]
        if not isinstance(end, ConfigRecord):
            raise StrategyError("the checkpoint of the run cannot be read")
        self._grid.continue_at(end)
        return Progress(0, _result(saved.content, self._index), finished=True)

    def commit(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Record a finished round; round 0 is the initial model. Exactly one commit of a round counts."""
        if progress.round == 0 and self._index > 0:
            return  # this round is the last one of the training before, which is committed
        self._diary.write(progress.result, progress.round)
        content = RecordDict(dict(self._former))
        content[f"{self._index}.arrays"] = progress.result.arrays
        content[f"{self._index}{_HISTORY}"] = self._diary.record()
        for name, record in progress.state.items():
            content[f"{_STATE}{name}"] = record
        content[_POSITION] = ConfigRecord({"training": self._index, "round": progress.round})
        self._grid.commit_round(progress.round, content, metrics)
        self._diary.committed()

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


class _Diary:
    """The metrics of a training's rounds in bytes: `record` has those that were written and those of `pages`.

    `next_round` is the first one that `pages` have no line of. `stored` makes of a page that is committed one that does
    not stand in memory.
    """

    def __init__(self, stored: Callable[[Array], Array], pages: Sequence[Array] = (), next_round: int = 0) -> None:
        self._stored = stored
        self._full = list(pages)
        self._begun = self._full.pop().view().tobytes() if self._full else b""
        self._next = next_round

    def write(self, result: Result, server_round: int) -> None:
        """Add what is new up to a round, which has a line even if nothing was measured in it."""
        for number in range(self._next, server_round + 1):
            records = [getattr(result, attribute).get(number) for attribute in _HISTORIES]
            line = [number, *(None if record is None else dict(record) for record in records)]
            self._begun += json.dumps(line, separators=(",", ":")).encode() + b"\n"
        self._next = max(self._next, server_round + 1)
        if len(self._begun) > _PAGE_BYTES:
            self._full.append(_page(self._begun, apart=True))
            self._begun = b""

    def record(self) -> ArrayRecord:
        """All lines, in full pages and one that is not."""
        pages = [*self._full, _page(self._begun, apart=False)]
        return ArrayRecord({str(place): page for place, page in enumerate(pages)})

    def committed(self) -> None:
        """A commit has what `record` gave: full pages need not stand in memory any more."""
        if self._full and self._full[-1].loaded:
            self._full[-1] = self._stored(self._full[-1])


def _page(content: bytes, *, apart: bool) -> Array:
    return Array.owning(np.frombuffer(content, np.uint8), apart=apart)


def _lines(record: ArrayRecord) -> Iterator[tuple[int, list[dict[str, Any] | None]]]:
    for array in record.values():
        for line in array.view().tobytes().splitlines():
            number, *metrics = json.loads(line)
            yield number, metrics


def _array_record(content: RecordDict, name: str) -> ArrayRecord:
    record = content.get(name)
    if not isinstance(record, ArrayRecord):
        raise StrategyError("the checkpoint of the run cannot be read")
    return record


def _result(content: RecordDict, index: int) -> Result:
    result = Result(arrays=_array_record(content, f"{index}.arrays"))
    for server_round, found in _lines(_array_record(content, f"{index}{_HISTORY}")):
        for attribute, metrics in zip(_HISTORIES, found, strict=True):
            if metrics is not None:
                getattr(result, attribute)[server_round] = MetricRecord(metrics)
        result.pack()
    return result
