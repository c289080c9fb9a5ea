"""Seeing a run through to its end, for the commands that begin one: `--stream`, `--wait` and `--timeout`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from flq.cli.follow import follow, wait
from flq.cli.options import json_option
from flq.cli.output import Failure, note, print_json
from flq.cli.views import JsonView, StreamView, ended, failure_of
from flq.errors import Interrupted
from flq.wire.control import Control
from flq.wire.runs import RunRow
from flq.wire.status import Outcome

if TYPE_CHECKING:
    from flq.cli.live import LiveView

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Watching:
    """How a run is to be watched: with its progress, in silence, or not at all; for at most `timeout` seconds."""

    stream: bool
    wait: bool
    timeout: float | None
    as_json: bool

    def see_through(self, door: Control, row: RunRow) -> int:
        """Say which run there is, and watch it as far as that was asked for; returns the exit code."""
        try:
            return self._see_through(door, row)
        except KeyboardInterrupt:
            return self._interrupted(row)

    def _see_through(self, door: Control, row: RunRow) -> int:
        if self.stream:
            with self._view() as view:
                self._announce(row, to_stderr=True)
                row = follow(door, row.name, view, timeout=self.timeout)
                view.end(row)
        elif self.wait:
            self._announce(row)
            row = wait(door, row.name, timeout=self.timeout)
            if self.as_json:
                print_json(row, failure_of(row))
            else:
                note(ended(row))
        else:
            self._leave(row)
            return 0
        self._point_on(row)
        return 0 if row.outcome is Outcome.COMPLETED else 1

    def _leave(self, row: RunRow) -> None:
        if self.as_json:
            print_json(row)
        else:
            self._announce(row)
            note(f"follow it: flq logs -f {row.name}")

    def _announce(self, row: RunRow, *, to_stderr: bool = False) -> None:
        if not self.as_json:
            click.echo(row.name, err=to_stderr)

    def _point_on(self, row: RunRow) -> None:
        """Say where a run that did not complete is told of in full."""
        if row.outcome is not Outcome.COMPLETED and not self.as_json:
            note(f"flq show {row.name} tells more, flq logs {row.name} what was printed")

    def _view(self) -> AbstractContextManager[JsonView | StreamView | LiveView]:
        if self.as_json:
            return nullcontext(JsonView())
        if not sys.stdout.isatty():
            return nullcontext(StreamView())
        from flq.cli.live import LiveView

        return LiveView()

    def _interrupted(self, row: RunRow) -> int:
        told = f"{row.name} goes on"
        hint = f"watch it: flq logs -f {row.name}; stop it: flq stop {row.name}"
        if self.as_json:
            print_json(row, Failure(Interrupted.code, told, hint))
        else:
            note(f"\n{told}. {hint[0].upper()}{hint[1:]}")
        return Interrupted.exit_code


def watched(command: Callable[..., R]) -> Callable[..., R]:
    """Give a command the options `--stream`, `--wait`, `--timeout` and `--json`; it gets `watching` in their place."""

    @click.option("--stream", is_flag=True, help="Show progress and output until the run is finished.")
    @click.option("--wait", "waiting", is_flag=True, help="Wait until the run is finished, in silence.")
    @click.option(
        "--timeout",
        type=click.FloatRange(min=0),
        metavar="S",
        help="Stop waiting after S seconds, exit 3; the run goes on.",
    )
    @json_option
    @functools.wraps(command)
    def wrapper(*args: Any, stream: bool, waiting: bool, timeout: float | None, as_json: bool, **options: Any) -> R:
        if stream and waiting:
            raise click.UsageError("--stream and --wait exclude each other")
        if timeout is not None and not (stream or waiting):
            raise click.UsageError("--timeout goes with --stream or --wait; to limit the run itself: --wall-time-limit")
        watching = Watching(stream=stream, wait=waiting, timeout=timeout, as_json=as_json)
        return command(*args, watching=watching, **options)

    return wrapper
