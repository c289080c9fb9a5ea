"""Options and arguments that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

Command = Callable[..., Any]


def json_option(command: Command) -> Command:
    """`--json`: print the answer as one JSON envelope."""
    return click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")(command)


def run_argument(command: Command) -> Command:
    """`RUN`: a run's name, or its id."""
    return click.argument("run")(command)


def examples(*lines: str) -> str:
    """The epilog of a command's help: examples, each on a line of its own."""
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in lines)))
