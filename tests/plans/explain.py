"""What PostgreSQL does for a statement: its plan, and how many pages it touched."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from psycopg import sql

from flq.link.database import Tx

PLACEHOLDER = re.compile(r"%\((\w+)\)s")
SCANS = {"Index Scan", "Index Only Scan", "Seq Scan", "Bitmap Heap Scan", "Bitmap Index Scan", "Tid Scan"}


@dataclass(frozen=True, slots=True)
class Scan:
    """One scan of a table."""

    table: str
    kind: str
    index: str | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What was done."""

    root: Mapping[str, Any]

    @property
    def buffers(self) -> int:
        """Pages touched, in memory or not."""
        return int(self.root["Shared Hit Blocks"] + self.root["Shared Read Blocks"])

    def nodes(self) -> Iterator[Mapping[str, Any]]:
        """Every node of the tree."""
        waiting = [self.root]
        while waiting:
            node = waiting.pop()
            waiting += node.get("Plans", [])
            yield node

    def rows_looked_at(self, table: str) -> float:
        """How many rows of a table were read, those that did not fit among them."""
        found = [node for node in self.nodes() if node["Node Type"] in SCANS and node.get("Relation Name") == table]
        return sum(
            float(node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)))
            for node in found
        )

    def scans(self, table: str) -> set[Scan]:
        """How a table, or its first partition, was read; the others are made ahead of time and empty."""
        return {
            Scan(table, node["Node Type"], node.get("Index Name"))
            for node in self.nodes()
            if node["Node Type"] in SCANS and re.fullmatch(rf"{table}(_p0+)?", node.get("Relation Name", ""))
        }


def explain(tx: Tx, statement: str, values: Mapping[str, Any], *, generic: bool) -> Plan:
    """Run a statement and undo it; the plan is the one for any arguments, or the one for these."""
    names: list[str] = []

    def number(found: re.Match[str]) -> str:
        if found[1] not in names:
            names.append(found[1])
        return f"${names.index(found[1]) + 1}"

    text = PLACEHOLDER.sub(number, statement).replace("%%", "%")
    arguments = sql.SQL(", ").join(sql.Literal(values[name]) for name in names)
    mode = "force_generic_plan" if generic else "force_custom_plan"
    with tx.transaction(force_rollback=True):
        tx.execute("SELECT set_config('plan_cache_mode', %s, true)", [mode])
        tx.execute(cast("Any", f"PREPARE asked AS {text}"))
        try:
            row = tx.execute(
                sql.SQL("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE asked{}").format(
                    sql.SQL("({})").format(arguments) if names else sql.SQL("")
                )
            ).fetchone()
        finally:
            tx.execute("DEALLOCATE asked")
    assert row is not None
    return Plan(row[0][0]["Plan"])
