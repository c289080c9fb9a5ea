"""Many runs, each struck by some faults, on federations side by side; every fault has its turn."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.chaos.faults import Fault
from tests.chaos.federation import federation
from tests.chaos.scenario import LOOPS, Report, disturbed, undisturbed

FAULTS_PER_RUN = 5
ATTEMPTS_PER_RUN = 3
"""So many attempts may die before their run: with what else may cost one, fewer than the cap."""


class Deck:
    """Deals faults: all of them, in a random order, before any a second time."""

    def __init__(self, faults: Sequence[Fault], rng: random.Random) -> None:
        if not faults:
            raise ValueError("there is no such fault")
        self._faults = list(faults)
        self._rng = rng
        self._left: list[Fault] = []

    def deal(self, count: int) -> list[Fault]:
        """Up to `count` faults that one run can bear."""
        dealt: list[Fault] = []
        kept: list[Fault] = []
        while len(dealt) < min(count, len(self._faults)):
            if not self._left:
                if kept:
                    break
                self._left = self._rng.sample(self._faults, len(self._faults))
            fault = self._left.pop()
            if fault in dealt or sum(each.attempts for each in [*dealt, fault]) > ATTEMPTS_PER_RUN:
                kept.append(fault)
            else:
                dealt.append(fault)
        self._left += kept
        return dealt


@dataclass(slots=True)
class Campaign:
    """Goes on until there have been so many runs and so many kills."""

    runs: int
    kills: int
    deck: Deck
    loops: Sequence[str] = LOOPS
    own_disk: bool = False
    told: Callable[[Report], None] = lambda _report: None
    reports: list[Report] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)
    _begun: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def carry_out(self, *, federations: int, rng: random.Random) -> None:
        """Do it all. Raises what a federation has failed with."""
        threads = [
            threading.Thread(target=self._guarded, args=(random.Random(rng.random()),))  # noqa: S311 - of a test
            for _ in range(federations)
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:
            self._stopped.set()
            raise
        if self.failures:
            raise self.failures[0]

    def _guarded(self, rng: random.Random) -> None:
        try:
            self._work(rng)
        except BaseException as exc:  # noqa: BLE001 - it is raised by the main thread
            self.failures.append(exc)
            self._stopped.set()

    def _work(self, rng: random.Random) -> None:
        with federation(own_disk=self.own_disk) as place:
            references = {loop: undisturbed(place, loop) for loop in self.loops}
            while (turn := self._next()) is not None:
                loop, faults = turn
                report = disturbed(place, loop, faults, reference=references[loop], rng=rng)
                with self._lock:
                    self.reports.append(report)
                    self.told(report)

    def _next(self) -> tuple[str, list[Fault]] | None:
        with self._lock:
            enough = self._begun >= self.runs and sum(report.kills for report in self.reports) >= self.kills
            if enough or self._stopped.is_set():
                return None
            self._begun += 1
            return self.loops[self._begun % len(self.loops)], self.deck.deal(FAULTS_PER_RUN)
