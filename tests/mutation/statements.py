"""Mutants of SQL: predicates dropped or turned round, bounds moved, joins narrowed, locks, orders and limits left out.

Works on the words of a statement, so that it goes on working when a statement is put differently.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module

from flq.link.sql import load
from tests.mutation.mutants import Mutant

STATEMENTS: dict[str, tuple[str, ...]] = {"tasks": (), "results": (), "batches": ("push", "pushed_before")}
"""Which statements of which aggregate; none named are all."""

REPLACEMENTS: tuple[tuple[str, str], ...] = (
    # locks
    (r"FOR UPDATE( OF \w+)?( SKIP LOCKED)?", ""),
    (r" SKIP LOCKED", ""),
    (r"(?<=FOR UPDATE) OF \w+", ""),
    (r"FOR (NO KEY UPDATE|KEY SHARE|SHARE)", ""),
    # order, limits, sets
    (r" DESC\b", ""),
    (r"\bDISTINCT (?!FROM|ON)", ""),
    (r"\bLIMIT (%\(\w+\)s|\d+)", ""),
    (r"\bmin\(", "max("),
    (r"\bOVER \(ORDER BY[^()]*\)", "OVER ()"),
    # joins, conflicts
    (r"\bLEFT JOIN\b", "JOIN"),
    (r"\bON CONFLICT[^\n]*DO NOTHING", ""),
    # what is computed and told
    (r"\bIS NOT DISTINCT FROM\b", "IS DISTINCT FROM"),
    (r"(?<=[\w)]) \+ (?=[\w(])", " - "),
    (r"(?<=[\w)]) - (?=[\w(])", " + "),
    (r"(?<=[\w)]) / (?=[\w(])", " * "),
    (r"'-infinity'", "'infinity'"),
    (r"\bpg_notify\(", "concat("),
)
"""What is looked for, and what stands there instead; one place at a time. Predicates are found below."""

_WORDS = re.compile(
    r"(?P<blank>\s+|--[^\n]*)|'(?:[^']|'')*'|IS (?:NOT )?DISTINCT FROM|%\(\w+\)s|\w+(?:\.\w+)*|::|<=|>=|<>|->>?|[^\w\s]"
)
_ENDS = frozenset({
    "FROM", "WHERE", "ORDER", "GROUP", "LIMIT", "OFFSET", "FOR", "RETURNING", "UNION", "ON", "THEN", ";",
})  # fmt: skip
_JOINS = _ENDS | {"JOIN", "LEFT", "CROSS"}
_COMPARISON = re.compile(r"(?<=[\w)]) (<=|>=|<>|<|>) (?=[\w(%'])")
_MOVED = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}


@dataclass(frozen=True, slots=True)
class _Word:
    text: str
    start: int
    end: int
    depth: int


def mutants() -> Iterator[Mutant]:
    """Every mutant of the statements, each with one change."""
    for aggregate, names in STATEMENTS.items():
        for name, body in load(aggregate).items():
            if not names or name in names:
                yield from _of(aggregate, name, body)


def _of(aggregate: str, name: str, body: str) -> Iterator[Mutant]:
    seen = {body}
    for start, end, now in (*_replaced(body), *_predicates(body), *_assignments(body), *_orders(body)):
        changed = body[:start] + now + body[end:]
        if changed not in seen:
            seen.add(changed)
            install = partial(_install, aggregate, name, changed)
            yield Mutant(f"{aggregate}.sql:{name}", _said(body), _said(changed), install=install)


def _install(aggregate: str, name: str, body: str) -> None:
    import_module(f"flq.link.{aggregate}").SQL[name] = body


def _said(body: str) -> str:
    return re.sub(r"--[^\n]*", "", body)


def _words(body: str) -> list[_Word]:
    """The words of a statement with their places and depths; no comments."""
    words: list[_Word] = []
    depth = 0
    for found in _WORDS.finditer(body):
        if found["blank"]:
            continue
        depth -= found[0] == ")"
        words.append(_Word(found[0], found.start(), found.end(), depth))
        depth += found[0] == "("
    return words


def _replaced(body: str) -> Iterator[tuple[int, int, str]]:
    comments = [(c.start(), c.end()) for c in re.finditer(r"--[^\n]*", body)]
    for pattern, now in REPLACEMENTS:
        for found in re.finditer(pattern, body):
            if not any(start <= found.start() < end for start, end in comments):
                yield found.start(), found.end(), now


def _predicates(body: str) -> Iterator[tuple[int, int, str]]:
    """Each condition of WHERE, ON and WHEN: left out, turned round, its bound moved."""
    words = _words(body)
    for place, word in enumerate(words):
        if word.text in {"WHERE", "WHEN"} or (word.text == "ON" and words[place + 1].text != "CONFLICT"):
            yield from _conditions(body, _clause(words, place, _JOINS if word.text == "ON" else _ENDS))


def _clause(words: list[_Word], opener: int, ends: frozenset[str]) -> list[_Word]:
    """The words behind `opener` up to one of `ends`, or to the end of what its parentheses hold."""
    depth = words[opener].depth
    last = opener + 1
    while last < len(words) and words[last].depth >= depth:
        if words[last].depth == depth and words[last].text in ends:
            break
        last += 1
    return words[opener + 1 : last]


def _conditions(body: str, words: list[_Word], neutral: str = "true") -> Iterator[tuple[int, int, str]]:
    for glue, other in (("OR", "false"), ("AND", "true")):
        parts = _split(words, glue)
        if len(parts) > 1:
            for part in parts:
                yield from _conditions(body, part, other)
            return
    start, end = words[0].start, words[-1].end
    text = body[start:end]
    yield start, end, neutral
    if words[0].text == "(" and words[-1].text == ")" and _split(words[1:-1], "OR")[1:]:
        yield from _conditions(body, words[1:-1], neutral)
        return
    if text != neutral and not re.search(r"(?<![<>]) = ", text):
        yield start, end, f"NOT ({text})"
    for found in _COMPARISON.finditer(text):
        if found[1] in _MOVED and "clock_timestamp" not in text and "SELECT" not in text:
            yield start + found.start(1), start + found.end(1), _MOVED[found[1]]


def _split(words: list[_Word], glue: str) -> list[list[_Word]]:
    """The parts between the ANDs, the ORs or the commas of a clause."""
    depth = words[0].depth
    parts: list[list[_Word]] = [[]]
    for word in words:
        if word.text == glue and word.depth == depth:
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def _assignments(body: str) -> Iterator[tuple[int, int, str]]:
    """Each assignment of an UPDATE, left out: the column stays as it is."""
    words = _words(body)
    for place, word in enumerate(words):
        if word.text != "SET" or "UPDATE" not in (words[place - 2].text, words[place - 3].text):
            continue
        alias = words[place - 1].text.rpartition(".")[2]
        for part in _split(_clause(words, place, _ENDS), ","):
            column = part[0].text
            yield part[0].start, part[-1].end, f"{column} = {alias}.{column}"


def _orders(body: str) -> Iterator[tuple[int, int, str]]:
    """Each ORDER BY, left out; and where it has several keys, all but the last."""
    words = _words(body)
    for place, word in enumerate(words):
        if word.text != "ORDER":
            continue
        clause = _clause(words, place, _ENDS)
        yield word.start, clause[-1].end, ""
        commas = [key for key in clause if key.text == "," and key.depth == word.depth]
        if commas:
            yield word.start, commas[-1].end, "ORDER BY"
