"""Mutants: one changed place in a statement or a function each, and how it is put in the original's place.

A mutant is called after where it is and what it changes, without a line number, so that `survivors.txt` outlives edits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

AROUND = 4
"""How many words on either side of a change its label shows."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """`place` is `module.sql:statement` or `module.py:function`; `lines` are those of the function's that it is on."""

    place: str
    was: str
    now: str
    install: Callable[[], None]
    lines: frozenset[int] = frozenset()
    number: int = 1

    @property
    def is_sql(self) -> bool:
        """Whether it is a statement's; else it is a function's."""
        return not self.lines

    @property
    def label(self) -> str:
        """How it is called in lists."""
        again = f" ({self.number})" if self.number > 1 else ""
        return f"{self.place}: {_difference(self.was.split(), self.now.split())}{again}"


def numbered(mutants: Iterable[Mutant]) -> Iterator[Mutant]:
    """Tell apart those that are called the same."""
    seen: Counter[str] = Counter()
    for mutant in mutants:
        seen[mutant.label] += 1
        yield replace(mutant, number=seen[mutant.label])


def _difference(was: list[str], now: list[str]) -> str:
    """What is changed, with some words around it."""
    first = _alike(was, now)
    last = min(_alike(was[::-1], now[::-1]), len(was) - first, len(now) - first)
    before, after = was[max(first - AROUND, 0) : first], was[len(was) - last :][:AROUND]
    old, new = (" ".join(words[first : len(words) - last]) for words in (was, now))
    return " ".join([*before, f"[{old} => {new}]", *after])


def _alike(one: list[str], other: list[str]) -> int:
    """With how many words in common two texts begin."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
