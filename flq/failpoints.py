"""Fail-points: named places at which a process can be made to die or to freeze, to try what survives.

They are armed by the variable `FLQ_FAILPOINTS` and by nothing else; without it `reach` does nothing. It holds either

- orders, separated by commas: `serverapp.after-push=kill@3,supernode.before-submit=freeze@1`. At the third pass of
  the first point the process kills itself, whenever it is started again too;
- or the path of a folder, in which orders may appear at any time: a file is named after its point and says `kill@3`.
  The process that carries an order out renames it to `POINT.PID` first: it happens once, whoever is started again.

Passes are counted within a process, in a folder from the first pass at which the order is there.
"""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, NamedTuple, get_args

from flq import settings
from flq.errors import UsageError

Point = Literal[
    "serverapp.before-push",
    "serverapp.after-push",
    "serverapp.mid-upload",
    "serverapp.before-commit",
    "serverapp.after-commit",
    "serverapp.before-report",
    "superexec.before-launch",
    "superexec.running",
    "superexec.before-record",
    "superexec.main",
    "superlink.before-publish",
    "superlink.after-publish",
    "superlink.mid-sweep",
    "supernode.claimed",
    "supernode.mid-upload",
    "supernode.before-submit",
    "supernode.after-submit",
    "clientapp.before-handler",
    "clientapp.state-staged",
    "clientapp.before-reply",
]
"""The places. docs/guarantees.md says of each where it is."""

POINTS: Final[tuple[Point, ...]] = get_args(Point)

_SIGNALS: Final = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP}
_ORDER = re.compile(r"(kill|freeze)@([1-9][0-9]*)")


class Order(NamedTuple):
    """What is to happen at a point: the signal that the process sends itself, at the how-manieth pass."""

    signal: signal.Signals
    at: int


def parse(text: str) -> Order:
    """Read an order: `kill@3`. Raises `UsageError`."""
    found = _ORDER.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{text!r} is no order for a fail-point", hint="one is like kill@3 or freeze@1")
    return Order(_SIGNALS[found[1]], int(found[2]))


def armed(value: str | None) -> Callable[[Point], None]:
    """What `reach` does, given what `FLQ_FAILPOINTS` holds. Raises `UsageError`."""
    if not value:
        return _nothing
    return _Folder(Path(value)).reach if value.startswith("/") else _Orders(value).reach


def _nothing(point: Point) -> None:
    """Unarmed: nothing is done."""


class _Orders:
    def __init__(self, value: str) -> None:
        self._orders = dict(_order(text) for text in value.split(","))
        self._passes: Counter[str] = Counter()

    def reach(self, point: Point) -> None:
        order = self._orders.get(point)
        if order is not None:
            self._passes[point] += 1
            if self._passes[point] == order.at:
                os.kill(os.getpid(), order.signal)


class _Folder:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._passes: Counter[str] = Counter()

    def reach(self, point: Point) -> None:
        try:
            order = parse((self._folder / point).read_text(encoding="ascii"))
        except FileNotFoundError:
            self._passes.pop(point, None)
            return
        self._passes[point] += 1
        if self._passes[point] < order.at:
            return
        try:
            (self._folder / point).rename(self._folder / f"{point}.{os.getpid()}")
        except FileNotFoundError:  # another process was first
            return
        os.kill(os.getpid(), order.signal)


def _order(text: str) -> tuple[str, Order]:
    point, _, order = text.strip().partition("=")
    if point not in POINTS:
        raise UsageError(f"FLQ_FAILPOINTS: there is no fail-point {point!r}", hint="docs/guarantees.md lists them")
    return point, parse(order)


reach: Final = armed(settings.failpoints())
"""Says that the process has come to a point."""
