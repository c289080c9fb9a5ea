"""`flq sql`: the state of the federation, in SQL."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable
from contextlib import suppress

import click

from flq.cli.federation import control, federated, find
from flq.cli.options import examples, json_option
from flq.cli.output import Failure, note, plain, print_failure, print_json, print_table
from flq.errors import FlqError
from flq.settings import Settings
from flq.wire.control import Control
from flq.wire.runs import Table

VIEWS = {
    "runs": "every run: app, status, outcome, reason, config, times",
    "attempts": "every execution of a run's ServerApp: host, pid, exit code, error",
    "rounds": "the rounds of every run: status, nodes, duration, metrics",
    "tasks": "every task, open or finished: run, round, node, status, error, times",
    "nodes": "every node: online or not, config, labels, open tasks",
    "superexecs": "every SuperExec: online or not, whether it takes jobs, slots",
    "metrics": "named numbers by run, round and node",
    "logs": "the output of ServerApps, ClientApps and SuperExec",
    "events": "the history of every run: what, when, who, why",
    "waiting": "what each unfinished run waits for",
    "maintenance": "what the sweeps have done, when, and what went wrong",
}
"""The views of schema `flq`, which is on the search path."""

PROMPT = "flq> "
CONTINUED = "...> "


@click.command(
    "sql",
    epilog=examples(
        "flq sql --views",
        "flq sql \"select run, round, metrics->>'accuracy' as accuracy from rounds order by 1, 2\"",
        'flq sql --csv "select * from metrics" > metrics.csv',
        "flq sql < report.sql",
    ),
)
@click.argument("query", required=False)
@click.option("--csv", "as_csv", is_flag=True, help="Print the answer as CSV.")
@click.option("--views", is_flag=True, help="List the views.")
@json_option
@federated
def command(*, settings: Settings, query: str | None, as_csv: bool, views: bool, as_json: bool) -> None:
    """Run a read-only SQL query on the views of the federation.

    Without QUERY statements are read from stdin, each up to its semicolon; on a terminal that is a prompt.
    """
    if as_csv and as_json:
        raise click.UsageError("--csv and --json exclude each other")
    show = _print_json if as_json else _print_csv if as_csv else _print_table
    if views:
        show(Table(("view", "what"), tuple(VIEWS.items())))
        return
    with control(find(settings)) as door:
        if query is not None:
            show(door.query(query))
        elif sys.stdin.isatty():
            _converse(door, show)
        else:
            for statement in statements(sys.stdin.read()):
                show(door.query(statement))


def statements(text: str) -> list[str]:
    """The statements of `text`, cut at semicolons that are not within quotes or comments."""
    found, quote, start, index = [], "", 0, 0
    while index < len(text):
        rest = text[index : index + 2]
        if quote:
            if text.startswith(quote, index):
                quote = ""
        elif rest in {"--", "/*"}:
            quote = "\n" if rest == "--" else "*/"
        elif text[index] in "'\"":
            quote = text[index]
        elif text[index] == ";":
            found.append(text[start:index])
            start = index + 1
        index += 1
    found.append(text[start:])
    return [statement.strip() for statement in found if statement.strip()]


def _converse(door: Control, show: Callable[[Table], None]) -> None:
    with suppress(ImportError):
        import readline  # noqa: F401 - gives the prompt a history
    note("statements end with a semicolon; the views: flq sql --views; leave with Ctrl-D")
    while (statement := _read_statement()) is not None:
        try:
            show(door.query(statement))
        except FlqError as exc:
            print_failure(Failure(exc.code, exc.message, exc.hint), as_json=False)


def _read_statement() -> str | None:
    """A statement from the prompt; None at the end of input."""
    lines: list[str] = []
    while True:
        try:
            lines.append(input(CONTINUED if lines else PROMPT))
        except EOFError:
            click.echo()
            return None
        text = "\n".join(lines).strip()
        if text.endswith(";"):
            return text.rstrip(";")
        if not text:
            lines.clear()


def _print_table(table: Table) -> None:
    print_table(table.columns, table.rows, empty="no rows")


def _print_json(table: Table) -> None:
    print_json([dict(zip(table.columns, row, strict=True)) for row in table.rows])


def _print_csv(table: Table) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(
        [plain(value, column) for column, value in zip(table.columns, row, strict=True)] for row in table.rows
    )
    click.echo(text.getvalue(), nl=False)
