"""From the contents of replies to one model and one set of metrics, for apps that aggregate by themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flq.apps.strategy.fold import InconsistentReplies, Model, Reply, Unusable, difference, read_reply
from flq.apps.strategy.mean import WeightedMean
from flq.wire.records import ArrayRecord, MetricRecord, RecordDict

MetricsAggregation = Callable[[list[RecordDict], str], MetricRecord]
"""Makes one MetricRecord of the replies' metric and config records, given the key of the weight."""


def aggregate_arrayrecords(records: Sequence[RecordDict], weighting_metric_name: str) -> ArrayRecord:
    """The mean of the models in `records`, weighted by a metric of theirs. Raises `InconsistentReplies`."""
    mean = WeightedMean()
    for reply in _consistent(records, weighting_metric_name, with_arrays=True):
        try:
            mean.add(Model(reply.arrays), reply.measure)
        except Unusable as why:
            raise InconsistentReplies(f"reply {reply.node_id} cannot be used: {why}") from why
    return mean.finish()


def aggregate_metricrecords(records: Sequence[RecordDict], weighting_metric_name: str) -> MetricRecord:
    """The mean of each metric, weighted by one of them, which is left out; lists element by element.

    Raises `InconsistentReplies`.
    """
    replies = _consistent(records, weighting_metric_name, with_arrays=False)
    metrics = [next(iter(reply.content.metric_records.values())) for reply in replies]
    total = sum(reply.measure for reply in replies)
    shares = [reply.measure / total for reply in replies]
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


def _consistent(records: Sequence[RecordDict], weighted_by_key: str, *, with_arrays: bool) -> list[Reply]:
    replies: list[Reply] = []
    for index, content in enumerate(records):
        try:
            replies.append(read_reply(content, weighted_by_key, node_id=index, with_arrays=with_arrays))
        except Unusable as why:
            raise InconsistentReplies(f"reply {index} cannot be used: {why}") from None
        if replies[-1].look != replies[0].look:
            raise InconsistentReplies(f"reply {index} cannot be used: {difference(replies[-1], replies[0])}")
    return replies
