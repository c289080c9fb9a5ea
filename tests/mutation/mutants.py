"""Mutants of the queue's SQL: a predicate dropped or turned round, a join loosened, a lock clause left out.

`python -m tests.mutation` tries them all. A mutant that no test notices is a hole in the tests, or is listed with the
reason why it is as good as the original in `survivors.txt`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from flq.link.sql import load

STATEMENTS = {
    "tasks": ("claim", "own_manifests", "renew", "release", "end_tasks", "overdue_tasks", "exhausted_tasks"),
    "results": ("submit", "stored_before", "note_late", "arrived"),
    "batches": ("push", "pushed_before"),
}

REPLACEMENTS: tuple[tuple[str, str], ...] = (
    # locks
    (r" SKIP LOCKED", ""),
    (r"FOR UPDATE OF t( SKIP LOCKED)?", ""),
    (r"FOR SHARE", ""),
    # order and limits
    (r"ORDER BY t\.node_id, t\.run_id, t\.task_id\n", "\n"),
    (r" DESC", ""),
    (r"ORDER BY priority DESC, place, tag, node_id", "ORDER BY node_id"),
    (r"ORDER BY priority DESC, tag, run_id, task_id", "ORDER BY run_id, task_id"),
    (r"LIMIT %\(\w+\)s", ""),
    (r"\bmin\(", "max("),
    # predicates
    (r"IS NOT NULL", "IS NULL"),
    (r"NOT EXISTS", "EXISTS"),
    (r"IS NOT DISTINCT FROM", "IS DISTINCT FROM"),
    (r"(?<=\w) < (?=clock_timestamp|w\.epoch|c\.epoch|%\()", " > "),
    (r"(?<=\w) > (?=clock_timestamp|p\.after|w\.beyond|f\.run_id|o\.batch_id)", " < "),
    (r"(?<=\w) (<=|>=) (?=clock_timestamp|%\()", " <> "),
    (r"(?<=\w) <> (?=%\()", " = "),
    (r"WHERE w\.ours\b", "WHERE true"),
    (r" AND w\.ours\b", ""),
    # writes
    (r"ON CONFLICT[^\n]*DO NOTHING", ""),
    (r"- 1\) / r\.weight", "- 1) * r.weight"),
    (r"\(t\.token <> %\(token\)s\)::int", "1"),
    (r"'-infinity'", "clock_timestamp() + interval '1 h'"),
    (r"clock_timestamp\(\) \+ make_interval", "clock_timestamp() - make_interval"),
)
"""What is looked for, and what stands there instead; one place at a time."""

CONJUNCT = re.compile(r"^(\s+)(AND|OR) [^\n()]*(\([^\n()]*\)[^\n()]*)*$", re.MULTILINE)
JOIN_KEY = re.compile(r" AND (t\.(run_id|token|epoch|task_id)|n\.epoch|s\.(token|task_id|node_id)) = \w+\.\w+")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One changed statement."""

    aggregate: str
    name: str
    line: int
    was: str
    now: str
    body: str

    @property
    def label(self) -> str:
        """How it is called in lists."""
        return f"{self.aggregate}.{self.name}: {self.was.strip()!r} -> {self.now.strip()!r} at line {self.line}"


def mutants() -> Iterator[Mutant]:
    """Every mutant of the statements, each with one change."""
    for aggregate, names in STATEMENTS.items():
        statements = load(aggregate)
        for name in names:
            yield from _of(aggregate, name, statements[name])


def _of(aggregate: str, name: str, body: str) -> Iterator[Mutant]:
    seen = {body}
    for pattern, replacement in REPLACEMENTS:
        for found in re.finditer(pattern, body):
            yield from _changed((aggregate, name, body), found, replacement, seen)
    for dropped in (CONJUNCT, JOIN_KEY):
        for found in dropped.finditer(body):
            yield from _changed((aggregate, name, body), found, "", seen)


def _changed(of: tuple[str, str, str], found: re.Match[str], now: str, seen: set[str]) -> Iterator[Mutant]:
    aggregate, name, body = of
    start = body.rfind("\n", 0, found.start()) + 1
    if "--" in body[start : found.start()]:
        return  # in a comment
    changed = body[: found.start()] + now + body[found.end() :]
    if changed not in seen:
        seen.add(changed)
        yield Mutant(aggregate, name, body.count("\n", 0, found.start()) + 1, found[0], now, changed)
