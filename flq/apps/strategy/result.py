"""What a training has brought."""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field

from flq.wire.records import ArrayRecord, MetricRecord

_CODES = {int: "q", float: "d"}
_INT64 = range(-(1 << 63), 1 << 63)


class RoundMetrics(MutableMapping[int, MetricRecord]):
    """MetricRecords by round, to be used as a dict of them.

    A record takes some 300 bytes, which counts after thousands of rounds. `pack` keeps the numbers of all that are
    there in 8 bytes each instead; whoever asks for one of these records gets it as it was, and it stays a record from
    then on.
    """

    __slots__ = ("_forms", "_loose", "_numbers", "_packed", "_place", "_start", "_touched", "_which")

    def __init__(self, records: Mapping[int, MetricRecord] | None = None) -> None:
        self._loose = dict(records or {})  # behind the packed ones
        self._packed = array("q")  # the rounds of the packed ones, rising
        self._touched: dict[int, MetricRecord] = {}  # those of them that are records again, or could not be packed
        self._start = array("q")  # where in `_numbers` those of each begin
        self._which = array("l")  # the form of each
        self._numbers = bytearray()
        self._forms: list[tuple[tuple[str, ...], str]] = []  # names, and types as `struct` has them
        self._place: dict[tuple[tuple[str, ...], str], int] = {}  # of each form

    def pack(self) -> None:
        """Make all records small. A change of one that somebody has kept from before is not seen here any more."""
        while self._loose:
            server_round = next(iter(self._loose))
            if type(server_round) is not int or (self._packed and server_round <= self._packed[-1]):
                break  # all keep the order in which they came
            self._append(server_round, self._loose.pop(server_round))

    def _append(self, server_round: int, record: MetricRecord) -> None:
        form = _form(record)
        if form is None:
            self._touched[server_round] = record
            form = (), ""
        which = self._place.setdefault(form, len(self._forms))
        if which == len(self._forms):
            self._forms.append(form)
        self._packed.append(server_round)
        self._start.append(len(self._numbers))
        self._which.append(which)
        self._numbers += struct.pack(form[1], *(record[name] for name in form[0]))

    def _unpacked(self, place: int) -> MetricRecord:
        names, codes = self._forms[self._which[place]]
        values = struct.unpack_from(codes, self._numbers, self._start[place])
        return MetricRecord(dict(zip(names, values, strict=True)))

    def _find(self, server_round: object) -> int | None:
        """The place of a packed round."""
        if not isinstance(server_round, int):
            return None
        place = bisect_left(self._packed, server_round)
        return place if place < len(self._packed) and self._packed[place] == server_round else None

    def __getitem__(self, server_round: int) -> MetricRecord:
        for records in (self._loose, self._touched):
            if server_round in records:
                return records[server_round]
        place = self._find(server_round)
        if place is None:
            raise KeyError(server_round)
        record = self._touched[server_round] = self._unpacked(place)
        return record

    def __setitem__(self, server_round: int, record: MetricRecord) -> None:
        records = self._loose if self._find(server_round) is None else self._touched
        records[server_round] = record

    def __delitem__(self, server_round: int) -> None:
        place = self._find(server_round)
        if place is None:
            del self._loose[server_round]
            return
        self._touched.pop(server_round, None)
        del self._packed[place], self._start[place], self._which[place]  # its numbers stay, and are never read

    def __iter__(self) -> Iterator[int]:
        yield from self._packed
        yield from self._loose

    def __reversed__(self) -> Iterator[int]:
        yield from reversed(self._loose)
        yield from reversed(self._packed)

    def __len__(self) -> int:
        return len(self._packed) + len(self._loose)

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


def _form(record: MetricRecord) -> tuple[tuple[str, ...], str] | None:
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
