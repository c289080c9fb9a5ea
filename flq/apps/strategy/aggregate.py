"""From the replies of a round to one model and one set of metrics."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from logging import WARNING
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flq.apps.logger import log
from flq.apps.strategy.mean import WeightedMean
from flq.errors import CodecError, ObjectCorrupt, ObjectUnknown, StrategyError
from flq.wire.message import Message
from flq.wire.records import ArrayRecord, MetricRecord, RecordDict

MetricsAggregation = Callable[[list[RecordDict], str], MetricRecord]
"""Makes one MetricRecord of the replies' metric and config records, given the key of the weight."""

ArrayKinds = frozenset[tuple[str, str, tuple[int, ...]]]
"""Key, dtype and shape of each array of a model."""

MetricKinds = frozenset[tuple[str, int]]
"""The key of each metric, with the length of a list or -1."""

_SCALAR = -1
_BLOCK = 1 << 16
_SHOWN = 3


class InconsistentReplies(StrategyError):
    """The replies do not fit together."""

    code = "inconsistent_replies"


class _Unusable(Exception):
    """A reply cannot be used, and why."""


@dataclass(frozen=True, slots=True)
class _Reply:
    """A reply that has what is needed. Its arrays have not been read; `content` are its other records."""

    node_id: int
    weight: float
    arrays: ArrayRecord
    content: RecordDict
    look: tuple[ArrayKinds, MetricKinds]


def array_kinds(arrays: ArrayRecord) -> ArrayKinds:
    """Key, dtype and shape of each array."""
    return frozenset((key, array.dtype, array.shape) for key, array in arrays.items())


def _metric_kinds(metrics: MetricRecord) -> MetricKinds:
    return frozenset((key, len(value) if isinstance(value, list) else _SCALAR) for key, value in metrics.items())


def _read(content: RecordDict, weighted_by_key: str, *, node_id: int, with_arrays: bool) -> _Reply:
    """Check a reply by itself. Raises `_Unusable`."""
    arrays = ArrayRecord()
    if with_arrays:
        if len(content.array_records) != 1:
            raise _Unusable(f"it has {len(content.array_records)} ArrayRecords; exactly one is needed")
        arrays = next(iter(content.array_records.values()))
    if len(content.metric_records) != 1:
        raise _Unusable(f"it has {len(content.metric_records)} MetricRecords; exactly one is needed")
    metrics = next(iter(content.metric_records.values()))
    others = RecordDict({name: record for name, record in content.items() if not isinstance(record, ArrayRecord)})
    weight = _weight(metrics, weighted_by_key)
    return _Reply(node_id, weight, arrays, others, (array_kinds(arrays), _metric_kinds(metrics)))


def _weight(metrics: MetricRecord, key: str) -> float:
    if key not in metrics:
        raise _Unusable(f"its metrics have no {key!r}, which it is weighted by")
    weight = metrics[key]
    if isinstance(weight, list) or not math.isfinite(weight) or weight <= 0:
        raise _Unusable(f"its {key!r} is {weight}; a weight is a positive number")
    return float(weight)


def _values(reply: _Reply) -> dict[str, NDArray[Any]]:
    """Read the arrays of a reply. Raises `_Unusable` if that is impossible, or a value is not finite."""
    try:
        arrays = {key: array.view() for key, array in reply.arrays.items()}
    except (CodecError, ObjectCorrupt, ObjectUnknown, TypeError) as exc:
        raise _Unusable(f"its arrays cannot be read: {exc}") from exc
    for key, array in arrays.items():
        if not _finite(array):
            raise _Unusable(f"its array {key!r} has NaN or infinite values")
    return arrays


def _finite(array: NDArray[Any]) -> bool:
    if array.dtype.kind not in "fc":
        return True
    flat = array.reshape(-1)
    return all(np.isfinite(flat[start : start + _BLOCK]).all() for start in range(0, flat.size, _BLOCK))


def _difference(reply: _Reply, model: _Reply) -> str:
    """How a reply differs from those that are used."""
    for what, mine, right in zip(("arrays", "metrics"), reply.look, model.look, strict=True):
        if mine != right:
            has, lacks = (", ".join(map(_spelled, sorted(kinds)[:_SHOWN])) for kinds in (mine - right, right - mine))
            return f"its {what} are not those of the other replies: it has {has or 'nothing'} for {lacks or 'nothing'}"
    return "it differs from the other replies"


def _spelled(kind: tuple[Any, ...]) -> str:
    name, *rest = kind
    return " ".join([repr(name), *(str(part) for part in rest if part != _SCALAR)])


class Fold:
    """Folds the replies of a round into a mean, each when its turn comes; then neither it nor its arrays are held.

    What cannot be used is logged with its node, and stands in `refused`: error replies, replies without the
    records that are needed, models with values that are not finite, and replies that look different from most.
    A reason that several share is logged in full for the first of them. `expected` is what the models of most replies
    should look like, if that is known; if more look the same in another way, they are right. `names` are those of the
    nodes, as far as they are known.
    """

    def __init__(
        self,
        weighted_by_key: str,
        *,
        with_arrays: bool,
        expected: ArrayKinds | None = None,
        names: Mapping[int, str] | None = None,
    ) -> None:
        self.refused: list[tuple[int, str]] = []
        self._names = names or {}
        self._weighted_by_key = weighted_by_key
        self._with_arrays = with_arrays
        self._expected = expected if with_arrays else None
        self._mean = WeightedMean()
        self._used: list[_Reply] = []
        self._odd: list[_Reply] = []

    def add(self, message: Message) -> None:
        """Fold one reply in."""
        node_id = message.metadata.src_node_id
        if message.has_error():
            error = message.error
            self._refuse(node_id, f"error {int(error.code)}: {error.reason or 'without a reason'}")
            return
        try:
            reply = _read(message.content, self._weighted_by_key, node_id=node_id, with_arrays=self._with_arrays)
        except _Unusable as why:
            self._refuse(node_id, str(why))
            return
        if self._fits(reply):
            self._fold(reply)
        else:
            self._odd.append(reply)

    def _fits(self, reply: _Reply) -> bool:
        if self._used:
            return reply.look == self._used[0].look
        return self._expected is None or reply.look[0] == self._expected

    def _fold(self, reply: _Reply) -> None:
        try:
            self._mean.add(_values(reply), reply.weight)
        except _Unusable as why:
            self._refuse(reply.node_id, str(why))
        else:
            self._used.append(replace(reply, arrays=ArrayRecord()))

    def finish(self) -> tuple[ArrayRecord, list[RecordDict]]:
        """The mean of the models, and the metric and config records of the replies that it is made of."""
        self._settle()
        for headline, nodes in self._by_reason().items():
            if len(nodes) > 1:
                log(WARNING, "nor are those of %s, for the same reason: %s", self._spelled(nodes[1:]), headline)
        return self._mean.finish(), [reply.content for reply in self._used]

    def reasons(self) -> str:
        """Why replies were refused, in one line: each reason once, with the nodes that it is of."""
        return "; ".join(f"{self._spelled(nodes)}: {headline}" for headline, nodes in self._by_reason().items())

    def _settle(self) -> None:
        """Decide by majority between replies that look different; those that were folded win a tie."""
        if not self._odd:
            return
        odd, self._odd = self._odd, []
        most, count = Counter(reply.look for reply in odd).most_common(1)[0]
        outvoted: list[_Reply] = []
        if count > len(self._used):
            model = next(reply for reply in odd if reply.look == most)
            outvoted, self._used, self._mean = self._used, [], WeightedMean()
        else:
            model = self._used[0]
        for reply in odd:
            if reply.look == model.look:
                self._fold(reply)
            else:
                outvoted.append(reply)
        for reply in outvoted:
            self._refuse(reply.node_id, _difference(reply, model))

    def _refuse(self, node_id: int, why: str) -> None:
        if _headline(why) not in self._by_reason():
            log(WARNING, "the reply of %s is not used: %s", self._spelled([node_id]), why)
        self.refused.append((node_id, why))

    def _by_reason(self) -> dict[str, list[int]]:
        nodes: dict[str, list[int]] = {}
        for node_id, why in self.refused:
            nodes.setdefault(_headline(why), []).append(node_id)
        return nodes

    def _spelled(self, nodes: Sequence[int]) -> str:
        told = [self._names.get(node_id, f"node {node_id}") for node_id in nodes[:_SHOWN]]
        return ", ".join(told) + (f" and {len(nodes) - _SHOWN} more" if len(nodes) > _SHOWN else "")


def _headline(why: str) -> str:
    """What happened: the first line of a reason, which a traceback may follow."""
    return why.partition("\n")[0]


def aggregate_arrayrecords(records: Sequence[RecordDict], weighting_metric_name: str) -> ArrayRecord:
    """The mean of the models in `records`, weighted by a metric of theirs. Raises `InconsistentReplies`."""
    mean = WeightedMean()
    for reply in _consistent(records, weighting_metric_name, with_arrays=True):
        mean.add({key: array.view() for key, array in reply.arrays.items()}, reply.weight)
    return mean.finish()


def aggregate_metricrecords(records: Sequence[RecordDict], weighting_metric_name: str) -> MetricRecord:
    """The mean of each metric, weighted by one of them, which is left out; lists element by element.

    Raises `InconsistentReplies`.
    """
    replies = _consistent(records, weighting_metric_name, with_arrays=False)
    metrics = [next(iter(reply.content.metric_records.values())) for reply in replies]
    total = sum(reply.weight for reply in replies)
    shares = [reply.weight / total for reply in replies]
    return MetricRecord(
        {
            key: _mean_of([record[key] for record in metrics], shares)
            for key in (metrics[0] if metrics else ())
            if key != weighting_metric_name
        }
    )


def _mean_of(values: Sequence[Any], shares: Sequence[float]) -> float | list[float]:
    if isinstance(values[0], list):
        return [_mean_of(column, shares) for column in zip(*values, strict=True)]  # type: ignore[misc]  # no lists in lists
    return float(sum(value * share for value, share in zip(values, shares, strict=True)))


def validate_message_reply_consistency(
    replies: Sequence[RecordDict], weighted_by_key: str, *, check_arrayrecord: bool
) -> None:
    """Raise `InconsistentReplies` unless all have one MetricRecord with the weight, and the same keys and shapes.

    With `check_arrayrecord` they also have exactly one ArrayRecord.
    """
    _consistent(replies, weighted_by_key, with_arrays=check_arrayrecord)


def _consistent(records: Sequence[RecordDict], weighted_by_key: str, *, with_arrays: bool) -> list[_Reply]:
    replies: list[_Reply] = []
    for index, content in enumerate(records):
        try:
            replies.append(_read(content, weighted_by_key, node_id=index, with_arrays=with_arrays))
        except _Unusable as why:
            raise InconsistentReplies(f"reply {index} cannot be used: {why}") from None
        if replies[-1].look != replies[0].look:
            raise InconsistentReplies(f"reply {index} cannot be used: {_difference(replies[-1], replies[0])}")
    return replies
