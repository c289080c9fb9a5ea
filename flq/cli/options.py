"""Options and arguments that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

Command = Callable[..., Any]


def json_option(command: Command) -> Command:
    """`--json`: print the answer as one JSON envelope."""
    return click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")(command)


def wall_time_limit_option(command: Command) -> Command:
    """`--wall-time-limit`: of all attempts of a run taken together, in seconds."""
    return click.option(
        "--wall-time-limit",
        type=click.FloatRange(min=0, min_open=True),
        metavar="S",
        help="Fail the run when it has worked for S seconds, all of its attempts taken together.",
    )(command)


def kept_checkpoints(text: str) -> int:
    """How many checkpoints `--keep-checkpoints` keeps; 0 is all."""
    if text == "all":
        return 0
    if not text.isdecimal() or not 0 < int(text) < 1 << 31:
        raise click.BadParameter(f"{text!r} is neither 'all' nor a number from 1 on")
    return int(text)


def run_argument(command: Command) -> Command:
    """`RUN`: a run's name, or its id."""
    return click.argument("run")(command)


def examples(*lines: str) -> str:
    """The epilog of a command's help: examples, each on a line of its own."""
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in lines)))
