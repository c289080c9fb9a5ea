"""From the replies of a round to those that can be used: checked one by one, then by majority."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from logging import INFO, WARNING
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from flq.apps.blocks import Workers, finite
from flq.apps.logger import log
from flq.apps.strategy.mean import NotFinite
from flq.errors import CodecError, ObjectCorrupt, ObjectUnknown, StrategyError
from flq.wire.message import Error, ErrorCode, Message
from flq.wire.records import Array, ArrayRecord, MetricRecord, RecordDict

ArrayKinds = frozenset[tuple[str, str, tuple[int, ...]]]
"""Key, dtype and shape of each array of a model."""

MetricKinds = frozenset[tuple[str, int]]
"""The key of each metric, with the length of a list or -1."""

_LARGE_MODEL = 16 << 20
"""In bytes. Of a smaller one the arrays may all stand in the message."""

_SCALAR = -1
_SHOWN = 3


class InconsistentReplies(StrategyError):
    """The replies do not fit together."""

    code = "inconsistent_replies"


class NoUsableReply(StrategyError):
    """There are replies to a round of training, but none, or too few, can be used."""

    code = "no_usable_reply"


class Unusable(Exception):
    """A reply cannot be used, and why. Never leaves the strategies."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply that has what is needed.

    `arrays` is its model, of which nothing has been read, or empty once it was folded; `array_record` is the record's
    name. `content` are its metric and config records. `measure` is what it is folded with: its weight, if the strategy
    asks for nothing else.
    """

    node_id: int
    measure: float
    array_record: str
    arrays: ArrayRecord
    content: RecordDict
    look: tuple[ArrayKinds, MetricKinds]

    def whole(self) -> RecordDict:
        """All records, the model among them."""
        return RecordDict({self.array_record: self.arrays, **self.content})


Measure = Callable[[MetricRecord], float]
"""Reads from a reply's metrics what it is folded with. Raises `Unusable`."""


class Combiner(Protocol):
    """Makes one model of several that are added one after the other."""

    def add(self, arrays: Mapping[str, NDArray[Any]], measure: float, /) -> None:
        """Fold a model in, of which nothing may be kept. Raises `Unusable`, perhaps when a part was folded."""

    def finish(self) -> ArrayRecord:
        """The model that has come of it. MUST raise `NotFinite` if one of those that were folded in was not finite."""


@runtime_checkable
class BatchCombiner(Combiner, Protocol):
    """One that is faster with several models at once, if they are in memory, and makes the same of them to the bit."""

    def add_all(self, models: Sequence[tuple[Mapping[str, NDArray[Any]], float]], /) -> None:
        """Fold several models in, each with its measure, in their order. MUST take whatever fits together."""


def array_kinds(arrays: ArrayRecord, *, shapes: bool = True) -> ArrayKinds:
    """Key, dtype and shape of each array; shapes are left out if they may differ."""
    return frozenset((key, array.dtype, array.shape if shapes else ()) for key, array in arrays.items())


def read_reply(
    content: RecordDict,
    weighted_by_key: str,
    *,
    node_id: int,
    with_arrays: bool,
    measure: Measure | None = None,
    shapes: bool = True,
) -> Reply:
    """Check a reply by itself. Raises `Unusable`."""
    name, arrays = "", ArrayRecord()
    if with_arrays:
        if len(content.array_records) != 1:
            raise Unusable(f"it has {len(content.array_records)} ArrayRecords; exactly one is needed")
        name, arrays = next(iter(content.array_records.items()))
    if len(content.metric_records) != 1:
        raise Unusable(f"it has {len(content.metric_records)} MetricRecords; exactly one is needed")
    metrics = next(iter(content.metric_records.values()))
    others = RecordDict({name: record for name, record in content.items() if not isinstance(record, ArrayRecord)})
    weight = _weight(metrics, weighted_by_key)
    look = array_kinds(arrays, shapes=shapes), _metric_kinds(metrics)
    return Reply(node_id, weight if measure is None else measure(metrics), name, arrays, others, look)


def _metric_kinds(metrics: MetricRecord) -> MetricKinds:
    return frozenset((key, len(value) if isinstance(value, list) else _SCALAR) for key, value in metrics.items())


def _weight(metrics: MetricRecord, key: str) -> float:
    if key not in metrics:
        raise Unusable(f"its metrics have no {key!r}, which it is weighted by")
    weight = metrics[key]
    if isinstance(weight, list) or not math.isfinite(weight) or weight <= 0:
        raise Unusable(f"its {key!r} is {weight}; a weight is a positive number")
    return float(weight)


def read_array(key: str, array: Array) -> NDArray[Any]:
    """Read one array of a reply. Raises `Unusable` if that is impossible."""
    try:
        return array.view()
    except (CodecError, ObjectCorrupt, ObjectUnknown, TypeError) as exc:
        raise Unusable(f"its array {key!r} cannot be read: {exc}") from exc


class Model(Mapping[str, NDArray[Any]]):
    """The arrays of a reply, each read when it is looked up, and not held. Raises `Unusable` if that is impossible."""

    def __init__(self, arrays: ArrayRecord) -> None:
        self._arrays = arrays

    def __getitem__(self, key: str) -> NDArray[Any]:
        return read_array(key, self._arrays[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def read_finite(key: str, array: Array, workers: Workers | None = None) -> NDArray[Any]:
    """Read one array of a reply. Raises `Unusable` if that is impossible, or a value is not finite."""
    found = read_array(key, array)
    if not finite(found, workers):
        raise Unusable(f"its array {key!r} has NaN or infinite values")
    return found


def _can_be_read_again(arrays: ArrayRecord) -> bool:
    """Whether keeping the replies costs little: of large models only small arrays stand in the message."""
    total = sum(array.nbytes for array in arrays.values())
    return total >= _LARGE_MODEL and not any(array.loaded for array in arrays.values())


def difference(reply: Reply, model: Reply) -> str:
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
    """Takes the replies of a round one by one, and folds each when its turn comes; then its arrays are not held.

    Arrays that can be read again are folded one by one, unseen: whether all were finite shows in the end. If not, which
    is rare, the replies are read again, each is looked through first, and only those that are finite are folded. Where
    arrays cannot be read again, as what is in memory is gone with its message, each reply is looked through at once.
    What the caller holds in memory anyway is folded together, if that is faster: when all replies are there.

    What cannot be used is logged with its node, and stands in `refused`: error replies, replies without the
    records that are needed, models with values that are not finite, and replies that look different from most.
    A reason that several share is logged in full for the first of them.

    Parameters
    ----------
    weighted_by_key
        The metric that every reply has, a positive number.
    with_arrays
        Whether a reply has a model.
    combine
        Makes what models are folded into. Without it the replies are gathered with their arrays, none of them read.
    measure
        What a model is folded with; its weight, unless given.
    expected
        What the models of most replies should look like, if that is known; if more look the same in another way, they
        are right.
    shapes
        Whether the arrays of all replies have the same shapes.
    names
        Those of the nodes, as far as they are known.
    enough
        How many replies are used at most: all others are late, and stand in `late`.
    held
        Whether the caller holds the replies anyway, so that they can be read again.
    threads
        How many threads look through large models.

    """

    def __init__(
        self,
        weighted_by_key: str,
        *,
        with_arrays: bool,
        combine: Callable[[], Combiner] | None = None,
        measure: Measure | None = None,
        expected: ArrayKinds | None = None,
        shapes: bool = True,
        names: Mapping[int, str] | None = None,
        enough: int | None = None,
        held: bool = False,
        threads: int = 1,
    ) -> None:
        self.refused: list[tuple[int, str]] = []
        self.late: list[int] = []
        self._weighted_by_key = weighted_by_key
        self._with_arrays = with_arrays
        self._combine = combine
        self._measure = measure
        self._expected = expected if with_arrays else None
        self._shapes = shapes
        self._names = names or {}
        self._enough = enough
        self._held = held
        self._workers = Workers(threads)
        self._combiner = combine() if combine else None
        self._careful: bool | None = None  # the first reply that is folded decides
        self._spoilt = False
        self._batch: list[tuple[Mapping[str, NDArray[Any]], float]] = []  # models in memory that are not folded yet
        self._used: list[Reply] = []
        self._odd: list[Reply] = []
        self._missing: list[tuple[int, str]] = []

    def add(self, message: Message) -> None:
        """Take one reply."""
        node_id = message.metadata.src_node_id
        if self._enough is not None and len(self._used) >= self._enough:
            self.late.append(node_id)
            return
        if message.has_error():
            self._add_error(node_id, message.error)
            return
        try:
            reply = read_reply(
                message.content,
                self._weighted_by_key,
                node_id=node_id,
                with_arrays=self._with_arrays,
                measure=self._measure,
                shapes=self._shapes,
            )
        except Unusable as why:
            self._refuse(node_id, str(why))
            return
        if self._fits(reply):
            self._fold(reply)
        else:
            self._odd.append(reply)

    def _add_error(self, node_id: int, error: Error) -> None:
        told = f"error {int(error.code)}: {error.reason or 'without a reason'}"
        if self._enough is not None and error.code == ErrorCode.MESSAGE_UNAVAILABLE:
            self._missing.append((node_id, told))  # late, if enough others have come
        else:
            self._refuse(node_id, told)

    def _fits(self, reply: Reply) -> bool:
        if self._used:
            return reply.look == self._used[0].look
        return self._expected is None or reply.look[0] == self._expected

    def _fold(self, reply: Reply) -> None:
        if self._combiner is None:
            self._used.append(reply)
            return
        if self._careful is None:
            self._careful = not (self._held or _can_be_read_again(reply.arrays))
        if self._careful:
            self._fold_finite(self._combiner, reply)
        elif isinstance(self._combiner, BatchCombiner) and all(array.loaded for array in reply.arrays.values()):
            self._put_off(reply)
        else:
            self._fold_batch()
            self._fold_unseen(self._combiner, reply)

    def _fold_finite(self, combiner: Combiner, reply: Reply) -> None:
        try:
            model = {key: read_finite(key, array, self._workers) for key, array in reply.arrays.items()}
            combiner.add(model, reply.measure)
        except Unusable as why:
            self._refuse(reply.node_id, str(why))
        else:
            self._used.append(replace(reply, arrays=ArrayRecord()))

    def _fold_unseen(self, combiner: Combiner, reply: Reply) -> None:
        try:
            combiner.add(Model(reply.arrays), reply.measure)
        except Unusable as why:
            self._spoilt = True
            self._refuse(reply.node_id, str(why))
        else:
            self._used.append(reply)

    def _put_off(self, reply: Reply) -> None:
        try:
            self._batch.append((dict(Model(reply.arrays)), reply.measure))
        except Unusable as why:
            self._refuse(reply.node_id, str(why))
        else:
            self._used.append(reply)

    def _fold_batch(self) -> None:
        """Fold what was put off, before another model is folded or the mean is looked at."""
        batch, self._batch = self._batch, []
        if batch and isinstance(self._combiner, BatchCombiner):
            self._combiner.add_all(batch)

    def finish(self) -> tuple[ArrayRecord, list[RecordDict]]:
        """The model that the replies were folded into, and the metric and config records of those that were used.

        Raises `NotFinite` if that model is not finite, though those that it is made of are.
        """
        self._settle()
        self._fold_batch()
        model = ArrayRecord() if self._combiner is None else self._finished(self._combiner)
        self._workers.close()
        self.tell()
        return model, [reply.content for reply in self._used]

    def _finished(self, combiner: Combiner) -> ArrayRecord:
        if not self._spoilt:
            try:
                return combiner.finish()
            except NotFinite:
                if self._careful:
                    raise
        return self._finished(self._fold_again())

    def _fold_again(self) -> Combiner:
        """Fold the replies once more, each after it was looked through."""
        replies, self._used = self._used, []
        self._combiner = combiner = self._combine() if self._combine else None
        self._careful, self._spoilt = True, False
        for reply in replies:
            self._fold(reply)
        if combiner is None:  # pragma: no cover - only what was folded is folded again
            raise AssertionError
        return combiner

    def gathered(self) -> list[Reply]:
        """The replies that can be used as far as is known; `refuse` takes one out again."""
        self._settle()
        return list(self._used)

    def refuse(self, reply: Reply, why: str) -> None:
        """Leave out a reply that was gathered, since it turned out that it cannot be used."""
        self._used = [other for other in self._used if other is not reply]
        self._refuse(reply.node_id, why)

    def tell(self) -> None:
        """Log who else shares the reasons that were logged, and who was late."""
        for headline, nodes in self._by_reason().items():
            if len(nodes) > 1:
                log(WARNING, "nor are those of %s, for the same reason: %s", self._spelled(nodes[1:]), headline)
        if self.late:
            log(INFO, "enough replies have come in; late, and not applied: %s", self._spelled(self.late))

    def reasons(self) -> str:
        """Why replies were refused, in one line: each reason once, with the nodes that it is of."""
        return "; ".join(f"{self._spelled(nodes)}: {headline}" for headline, nodes in self._by_reason().items())

    def _settle(self) -> None:
        """Decide who is late, and by majority between replies that look different; those that were folded win a tie."""
        missing, self._missing = self._missing, []
        for node_id, told in missing:
            if len(self._used) >= (self._enough or 0):
                self.late.append(node_id)
            else:
                self._refuse(node_id, told)
        if not self._odd:
            return
        odd, self._odd = self._odd, []
        most, count = Counter(reply.look for reply in odd).most_common(1)[0]
        outvoted: list[Reply] = []
        if count > len(self._used):
            model = next(reply for reply in odd if reply.look == most)
            outvoted, self._used, self._batch = self._used, [], []
            self._combiner, self._spoilt = self._combine() if self._combine else None, False
        else:
            model = self._used[0]
        for reply in odd:
            if reply.look == model.look:
                self._fold(reply)
            else:
                outvoted.append(reply)
        for reply in outvoted:
            self._refuse(reply.node_id, difference(reply, model))

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
