"""The output of ServerApps and ClientApps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from flq.link.database import Database
from flq.link.sql import load
from flq.wire.ids import RunId
from flq.wire.runs import FeedCursor, LogLine, LogPage

SQL: Final = load("logs")

PAGE_LINES = 5000


def append(db: Database, lines: Sequence[tuple[RunId, LogLine]]) -> None:
    """Append lines to the logs of their runs."""
    if not lines:
        return
    values = {
        "run_ids": [run_id for run_id, _ in lines],
        "ats": [line.at for _, line in lines],
        "sources": [line.source for _, line in lines],
        "levels": [line.level for _, line in lines],
        "texts": [line.text.replace("\0", "\N{SYMBOL FOR NULL}") for _, line in lines],
    }
    with db.connection() as connection:
        connection.execute(SQL["append_logs"], values)


def read(db: Database, run_id: RunId, cursor: FeedCursor, *, limit: int = PAGE_LINES) -> LogPage:
    """Lines of a run since `cursor`, each exactly once, at most `limit` a page."""
    values = {"run_id": run_id, "xmin": cursor.xmin, "seen": [line_id for _, line_id in cursor.seen], "limit": limit}
    with db.connection() as connection:
        rows = connection.execute(SQL["read_logs"], values).fetchall()
    xmin = int(rows[0][0])
    found = [row for row in rows if row[1] is not None]
    if len(found) == limit:
        xmin = min(xmin, int(found[-1][6]))  # go on in the middle of that transaction's lines
    seen = {(int(row[6]), int(row[1])) for row in found} | cursor.seen
    lines = sorted(
        (LogLine(at=at, source=source, level=level, text=text, line_id=line_id)
         for _, line_id, at, source, level, text, _ in found),
        key=lambda line: (line.at, line.line_id),
    )  # fmt: skip
    return LogPage(tuple(lines), FeedCursor(xmin, frozenset(pair for pair in seen if pair[0] >= xmin)))
