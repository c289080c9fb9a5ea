"""What commands print: one JSON envelope, or text for people. Answers go to stdout, all else to stderr."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock_time
from typing import Any

import click

SCHEMA_VERSION = 1

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a command could not do its work, or what its answer says went wrong."""

    code: str
    message: str
    hint: str | None = None


def envelope(data: Any = None, failure: Failure | None = None) -> str:
    """The one shape of every JSON answer."""
    return json.dumps(
        {
            "schema_version": SCHEMA_VERSION,
            "status": "ok" if failure is None else "error",
            "data": plain(data),
            "error": plain(failure),
        },
        ensure_ascii=False,
    )


def print_json(data: Any, failure: Failure | None = None) -> None:
    """Print an answer as JSON."""
    click.echo(envelope(data, failure))


def print_failure(failure: Failure, *, as_json: bool) -> None:
    """Print why there is no answer."""
    if as_json:
        print_json(None, failure)
        return
    click.echo(f"{click.style('error:', fg='red')} {failure.message}", err=True)
    if failure.hint:
        click.echo(f"{click.style('hint:', fg='cyan')} {failure.hint}", err=True)


def note(text: str) -> None:
    """Tell people something that is not the answer."""
    click.echo(text, err=True)


def plain(value: Any, key: str = "") -> Any:
    """`value` in terms of JSON: ids as strings, times in ISO 8601, durations in seconds, hashes in hex."""
    if isinstance(value, Mapping):
        return {str(name): plain(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item, key) for item in value]
    if dataclasses.is_dataclass(value):
        names = (field.name for field in dataclasses.fields(value))
        return {name: plain(getattr(value, name), name) for name in names}
    return _plain_scalar(value, key)


def _plain_scalar(value: Any, key: str) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if key.endswith("_id") else value
    if value is None or isinstance(value, bool) or (isinstance(value, float) and math.isfinite(value)):
        return value  # JSON knows no infinity, and no NaN
    for kind, told in _TEXTS:
        if isinstance(value, kind):
            return told(value)
    return str(value)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str = "nothing") -> None:
    """Print rows for people: fitted to a terminal, or one line each when piped."""
    cells = [[cell(value) for value in row] for row in rows]
    if not cells:
        note(empty)
    elif sys.stdout.isatty():
        _print_rich_table(columns, cells)
    else:
        for line in table_lines(columns, cells):
            click.echo(line)


def table_lines(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A header and the rows, in columns."""
    lines = [list(columns), *([" ".join(text.split("\n")) for text in row] for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def cell(value: Any) -> str:
    """A value as people read it."""
    if isinstance(value, Mapping):
        return " ".join(f"{name}={cell(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ",".join(cell(item) for item in value)
    if isinstance(value, bytes | memoryview):
        return bytes(value).hex()[:12]
    for kind, told in _CELLS:
        if isinstance(value, kind):
            return told(value)
    return "" if value is None else str(value)


def number(value: float) -> str:
    """A measured number, in four significant digits."""
    return f"{value:.4g}"


def duration(value: timedelta) -> str:
    """A time span in the unit that fits."""
    seconds = value.total_seconds()
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 2 * _MINUTE:
        return f"{seconds:.1f} s"
    if seconds < 2 * _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    return f"{seconds / _HOUR:.0f} h" if seconds < 2 * _DAY else f"{seconds / _DAY:.0f} days"


def ago(when: datetime | None) -> str:
    """How long ago something was."""
    if when is None:
        return ""
    span = datetime.now(UTC) - when
    return "now" if span < timedelta(seconds=1) else f"{duration(span)} ago"


def size(count: int) -> str:
    """A number of bytes in the unit that fits."""
    step = 1024
    amount = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if amount < step:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= step
    return f"{amount:.1f} TB"


_TEXTS: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (timedelta, timedelta.total_seconds),
    ((datetime, date, clock_time), lambda value: value.isoformat()),
    ((bytes, memoryview), lambda value: bytes(value).hex()),
)

_CELLS: tuple[tuple[type, Callable[[Any], str]], ...] = (
    (bool, lambda value: "yes" if value else "no"),
    (float, number),
    (timedelta, duration),
    (datetime, lambda value: value.astimezone().strftime("%Y-%m-%d %H:%M:%S")),
)


def _print_rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False, collapse_padding=True)
    for index, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=index == 0)
    for row in rows:
        table.add_row(*(Text(text) for text in row))
    Console().print(table)
