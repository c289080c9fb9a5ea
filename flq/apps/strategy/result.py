"""What a training has brought."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field

from flq.wire.records import ArrayRecord, MetricRecord

_CODES = {int: "q", float: "d"}
_INT64 = range(-(1 << 63), 1 << 63)

_Form = tuple[tuple[str, ...], str]
"""Names, and types as `struct` has them."""

_NO_FORM: _Form = (), ""


@dataclass(slots=True)
class _Stretch:
    """Packed records of one form, of rounds at equal distances; where among the numbers theirs begin."""

    rounds: range
    form: _Form
    start: int

    def goes_on_with(self, server_round: int) -> bool:
        """Whether a round is the next one of this stretch: any one is, if there is but one so far."""
        return len(self.rounds) == 1 or server_round == self.rounds.stop

    def extend(self, server_round: int) -> None:
        """Take the next round in."""
        first, step = self.rounds.start, self.rounds.step if len(self.rounds) > 1 else server_round - self.rounds.start
        self.rounds = range(first, server_round + step, step)

    def offset(self, server_round: int) -> int:
        """Where the numbers of a round begin."""
        return self.start + self.rounds.index(server_round) * struct.calcsize(self.form[1])


class RoundMetrics(MutableMapping[int, MetricRecord]):
    """MetricRecords by round, to be used as a dict of them.

    A record takes some 300 bytes, which counts after thousands of rounds. `pack` keeps the numbers of all that are
    there in 8 bytes each instead; whoever asks for one of these records gets it as it was, and it stays a record from
    then on.
    """

    __slots__ = ("_forms", "_gone", "_loose", "_numbers", "_stretches", "_touched")

    def __init__(self, records: Mapping[int, MetricRecord] | None = None) -> None:
        self._loose = dict(records or {})  # behind the packed ones
        self._stretches: list[_Stretch] = []  # the packed ones, their rounds rising
        self._numbers = bytearray()
        self._forms: dict[_Form, _Form] = {}  # each once, for all stretches
        self._touched: dict[int, MetricRecord] = {}  # packed ones that are records again, or could not be packed
        self._gone: set[int] = set()  # packed ones that were deleted: their numbers are never read

    def pack(self) -> None:
        """Make all records small. A change of one that somebody has kept from before is not seen here any more."""
        while self._loose:
            server_round = next(iter(self._loose))
            if type(server_round) is not int or (self._stretches and server_round <= self._stretches[-1].rounds[-1]):
                break  # all keep the order in which they came
            self._append(server_round, self._loose.pop(server_round))

    def _append(self, server_round: int, record: MetricRecord) -> None:
        form = _form(record)
        if form is None:
            self._touched[server_round] = record
            form = _NO_FORM
        last = self._stretches[-1] if self._stretches else None
        if last is not None and last.form == form and last.goes_on_with(server_round):
            last.extend(server_round)
        else:
            form = self._forms.setdefault(form, form)
            self._stretches.append(_Stretch(range(server_round, server_round + 1), form, len(self._numbers)))
        self._numbers += struct.pack(form[1], *(record[name] for name in form[0]))

    def _unpacked(self, stretch: _Stretch, server_round: int) -> MetricRecord:
        names, codes = stretch.form
        values = struct.unpack_from(codes, self._numbers, stretch.offset(server_round))
        return MetricRecord(dict(zip(names, values, strict=True)))

    def _find(self, server_round: object) -> _Stretch | None:
        """The stretch that a packed round is in."""
        if not isinstance(server_round, int) or server_round in self._gone:
            return None
        place = bisect_right(self._stretches, server_round, key=lambda stretch: stretch.rounds.start) - 1
        if place < 0 or server_round not in self._stretches[place].rounds:
            return None
        return self._stretches[place]

    def _packed(self) -> list[int]:
        return [number for stretch in self._stretches for number in stretch.rounds if number not in self._gone]

    def __getitem__(self, server_round: int) -> MetricRecord:
        for records in (self._loose, self._touched):
            if server_round in records:
                return records[server_round]
        stretch = self._find(server_round)
        if stretch is None:
            raise KeyError(server_round)
        record = self._touched[server_round] = self._unpacked(stretch, server_round)
        return record

    def __setitem__(self, server_round: int, record: MetricRecord) -> None:
        records = self._loose if self._find(server_round) is None else self._touched
        records[server_round] = record

    def __delitem__(self, server_round: int) -> None:
        if self._find(server_round) is None:
            del self._loose[server_round]
            return
        self._touched.pop(server_round, None)
        self._gone.add(server_round)

    def __iter__(self) -> Iterator[int]:
        yield from self._packed()
        yield from self._loose

    def __reversed__(self) -> Iterator[int]:
        yield from reversed(self._loose)
        yield from reversed(self._packed())

    def __len__(self) -> int:
        return sum(len(stretch.rounds) for stretch in self._stretches) - len(self._gone) + len(self._loose)

    def __contains__(self, server_round: object) -> bool:
        return server_round in self._loose or self._find(server_round) is not None

    def __or__(self, other: Mapping[int, MetricRecord]) -> dict[int, MetricRecord]:
        return {**self, **other}

    def __ror__(self, other: Mapping[int, MetricRecord]) -> dict[int, MetricRecord]:
        return {**other, **self}

    def __repr__(self) -> str:
        return repr(dict(self))

    def copy(self) -> dict[int, MetricRecord]:
        """The records in a dict."""
        return dict(self)


def _form(record: MetricRecord) -> _Form | None:
    """Names and types of the numbers in a record; None if it is more than numbers of 8 bytes."""
    if type(record) is not MetricRecord:
        return None
    values = list(record.values())
    if any(type(value) not in _CODES or (type(value) is int and value not in _INT64) for value in values):
        return None
    return tuple(record), "".join(["=", *(_CODES[type(value)] for value in values)])


@dataclass
class Result:
    """The model and the metrics of each round.

    Attributes
    ----------
    arrays
        The model after the last round.
    train_metrics_clientapp, evaluate_metrics_clientapp
        What the strategy made of the nodes' metrics, by round from 1 on.
    evaluate_metrics_serverapp
        What `evaluate_fn` returned, by round; round 0 is the initial model.

    """

    arrays: ArrayRecord = field(default_factory=ArrayRecord)
    train_metrics_clientapp: MutableMapping[int, MetricRecord] = field(default_factory=RoundMetrics)
    evaluate_metrics_clientapp: MutableMapping[int, MetricRecord] = field(default_factory=RoundMetrics)
    evaluate_metrics_serverapp: MutableMapping[int, MetricRecord] = field(default_factory=RoundMetrics)

    def pack(self) -> None:
        """Keep the metrics of the rounds up to now in less memory: they are over."""
        for metrics in (
            self.train_metrics_clientapp,
            self.evaluate_metrics_clientapp,
            self.evaluate_metrics_serverapp,
        ):
            if isinstance(metrics, RoundMetrics):
                metrics.pack()

    def __repr__(self) -> str:
        lines = [f"Result: {len(self.arrays)} arrays, {self.arrays.count_bytes()} bytes"]
        for title, metrics in (
            ("train (nodes)", self.train_metrics_clientapp),
            ("evaluate (nodes)", self.evaluate_metrics_clientapp),
            ("evaluate (server)", self.evaluate_metrics_serverapp),
        ):
            lines += [f"  {title}, round {number}: {dict(record)}" for number, record in sorted(metrics.items())]
        return "\n".join(lines)
