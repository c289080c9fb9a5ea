"""Statistics of each element over the replies, for rules that liars cannot move far.

They need the replies together, so arrays are read one after the other, each from all replies, and let go again: memory
is that of one array of all replies. Within an array they are worked on in blocks of columns.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flq.apps.blocks import BLOCK, Workers, blocks, finite, narrowed, working_dtype
from flq.apps.strategy.fedavg import FedAvg
from flq.apps.strategy.fold import Fold, Reply, Unusable, read_finite
from flq.apps.strategy.mean import NotFinite
from flq.errors import StrategyError
from flq.wire.message import Message
from flq.wire.records import Array, ArrayRecord, MetricRecord

Rows = list[NDArray[Any]]
"""A block of an array, one row of its elements from each reply."""

Rule = Callable[[Rows], NDArray[Any]]
"""Makes one row of the rows of all replies; may overwrite them."""

_FEWEST = 256
"""Elements of a block at least, however many replies there are."""


class UnusableReply(Exception):
    """A reply turned out to be unusable when it was read. Never leaves the strategies."""

    def __init__(self, reply: Reply, why: str) -> None:
        super().__init__(why)
        self.reply = reply


class GatheringStrategy(FedAvg):
    """FedAvg whose new model is not the mean of the replies, but what `combine` makes of all of them together."""

    @abstractmethod
    def combine(self, replies: Sequence[Reply]) -> tuple[ArrayRecord | None, Sequence[Reply]]:
        """The new model, or None to keep the old one, and the replies whose metrics count.

        Raises `UnusableReply`; it is then called again without that reply.
        """

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The new model, and the weighted mean of each metric. Raises `StrategyError` as FedAvg does."""
        fold = Fold(self.weighted_by_key, with_arrays=True, expected=self._sent, names=self._names, enough=self.enough)
        for reply in replies:
            fold.add(reply)
        while self.suffice(server_round, fold, len(usable := fold.gathered())):
            try:
                arrays, chosen = self.combine(usable)
            except UnusableReply as exc:
                fold.refuse(exc.reply, str(exc))
                continue
            fold.tell()
            if arrays is None:
                return None, None
            return arrays, self._metrics(self.train_metrics_aggr_fn, [reply.content for reply in chosen])
        return None, None

    def by_element(self, replies: Sequence[Reply], rule: Rule) -> ArrayRecord:
        """The model that `rule` makes of the replies' models, element by element. Raises `UnusableReply`."""
        record, workers = ArrayRecord(), Workers(self.threads)
        for key, layers in each_layer(replies, workers):
            combined = self._combined(layers, rule, workers)
            if not finite(combined, workers):
                raise NotFinite(
                    f"what the array {key!r} is combined to is not finite: its values are too large to be added up",
                    hint="float64_accumulator=True adds them up in float64",
                )
            record[key] = Array.owning(combined)
        workers.close()
        return record

    def _combined(self, layers: Rows, rule: Rule, workers: Workers) -> NDArray[Any]:
        dtype, shape = layers[0].dtype, layers[0].shape
        flat = [layer.reshape(-1) for layer in layers]
        result = np.empty(flat[0].size, working_dtype(dtype, float64=self.float64_accumulator))
        width = max(BLOCK * 8 // len(layers), _FEWEST)

        def work(part: slice) -> None:
            for block in blocks(part, size=width):
                rows = [layer[block].astype(result.dtype) for layer in flat]
                with np.errstate(over="ignore", invalid="ignore"):
                    result[block] = rule(rows)

        workers.each_part(result.size, work)
        return narrowed(result, dtype).reshape(shape)


def each_layer(replies: Sequence[Reply], workers: Workers | None = None) -> Iterator[tuple[str, Rows]]:
    """Each array's name, and the array of each reply, all read and finite. Raises `UnusableReply`, `StrategyError`."""
    for key in replies[0].arrays:
        layers = [_read(key, reply, workers) for reply in replies]
        if layers[0].dtype.kind == "c":
            raise StrategyError(f"complex numbers have no order; the array {key!r} has such")
        yield key, layers


def _read(key: str, reply: Reply, workers: Workers | None) -> NDArray[Any]:
    try:
        return read_finite(key, reply.arrays[key], workers)
    except Unusable as why:
        raise UnusableReply(reply, str(why)) from why


def sort(rows: Rows) -> Rows:
    """The rows sorted element by element, the smallest first; overwrites them.

    Batcher's merge exchange, as in Knuth, The Art of Computer Programming 3, 5.2.2, algorithm M: whole rows are
    compared with each other, which numpy does many elements at a time.
    """
    rows, spare, count = list(rows), np.empty_like(rows[0]), len(rows)
    highest = 1 << max(count - 1, 1).bit_length() - 1
    half = highest
    while half:
        bit, first, distance = highest, 0, half
        while True:
            for low in (index for index in range(count - distance) if index & half == first):
                high = low + distance
                np.minimum(rows[low], rows[high], out=spare)
                np.maximum(rows[low], rows[high], out=rows[high])
                rows[low], spare = spare, rows[low]
            if bit == half:
                break
            distance, bit, first = bit - half, bit >> 1, half
        half >>= 1
    return rows


def median_of_sorted(rows: Rows) -> NDArray[Any]:
    """The middle row, or the mean of the two in the middle."""
    middle = len(rows) // 2
    return rows[middle] if len(rows) % 2 else mean(rows[middle - 1 : middle + 1])


def mean(rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The mean of the rows; equal rows give exactly themselves."""
    result = np.array(rows[0])
    for count, row in enumerate(rows[1:], start=2):
        result += (row - result) / count
    return result
