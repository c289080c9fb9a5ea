"""How a run that is followed is shown: as a log, as plain lines of progress, or as JSON lines."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import click

from flq.cli.output import Failure, duration, note, number, plain, print_json
from flq.wire.runs import LogLine, RoundRow, RunRow
from flq.wire.status import Outcome

SERVERAPP = "serverapp"
SUPEREXEC = "superexec"
_LOUD = frozenset({"WARNING", "ERROR", "CRITICAL"})
_MOST_METRICS = 3


class LogView:
    """Prints the log alone, to stdout: `flq logs`."""

    def __init__(self, sources: Collection[str] = ()) -> None:
        self._sources = frozenset(sources)

    def lines(self, lines: Sequence[LogLine]) -> None:
        """Print lines, all but the ServerApp's with their source."""
        for line in lines:
            if not self._sources or line.source in self._sources:
                click.echo(labelled(line))

    def rounds(self, run: RunRow, rounds: Sequence[RoundRow]) -> None:
        """Rounds are no part of the log."""

    def waiting(self, reason: str) -> None:
        """Nor is that."""

    def end(self, run: RunRow) -> None:
        """Say how the run ended."""
        note(ended(run))


class StreamView:
    """Prints progress in plain lines: `flq run --stream` without a terminal.

    The ServerApp's output is the answer and goes to stdout, so that its last line is the last one there; all else
    goes to stderr.
    """

    def __init__(self) -> None:
        self._finished = FinishedRounds()
        self._reason = ""

    def lines(self, lines: Sequence[LogLine]) -> None:
        """Print lines as they come."""
        for line in lines:
            if is_shown(line):
                click.echo(labelled(line), err=line.source != SERVERAPP or line.level in _LOUD)

    def rounds(self, run: RunRow, rounds: Sequence[RoundRow]) -> None:
        """Print one line for each round that has finished."""
        for found in self._finished.new(rounds):
            note(round_line(run, found))

    def waiting(self, reason: str) -> None:
        """Print the reason once."""
        if reason != self._reason:
            note(f"waiting: {reason}")
        self._reason = reason

    def end(self, run: RunRow) -> None:
        """Say why the run was cut; of one that completed, the last word is its app's."""
        if run.outcome is not Outcome.COMPLETED:
            note(ended(run))


class JsonView:
    """Prints one JSON object a line, each with a `type`; the last line is the envelope."""

    def __init__(self, sources: Collection[str] = ()) -> None:
        self._sources = frozenset(sources)
        self._finished = FinishedRounds()
        self._state: tuple[object, ...] = ()

    def lines(self, lines: Sequence[LogLine]) -> None:
        """Print lines of the log."""
        for line in lines:
            if not self._sources or line.source in self._sources:
                self._print("log", plain(line))

    def rounds(self, run: RunRow, rounds: Sequence[RoundRow]) -> None:
        """Print what has changed: the run's status, and each round that has finished."""
        state = (run.status, run.attempt)
        if state != self._state:
            self._state = state
            self._print("run", {"name": run.name, "status": run.status.value, "attempt": run.attempt})
        for found in self._finished.new(rounds):
            self._print("round", plain(found))

    def waiting(self, reason: str) -> None:
        """Print nothing: programs ask `flq show`."""

    def end(self, run: RunRow) -> None:
        """Print the envelope."""
        print_json(run, failure_of(run))

    def _print(self, kind: str, fields: Mapping[str, Any]) -> None:
        import json

        click.echo(json.dumps({"type": kind, **fields}, ensure_ascii=False))


class FinishedRounds:
    """Tells each finished round once."""

    def __init__(self) -> None:
        self._told: set[int] = set()

    def new(self, rounds: Iterable[RoundRow]) -> Iterator[RoundRow]:
        """The rounds that have finished since the last call."""
        for found in rounds:
            if found.status != "running" and found.round not in self._told:
                self._told.add(found.round)
                yield found


def is_shown(line: LogLine) -> bool:
    """Whether a line is worth showing among a run's progress, which tells of starts and ends by itself.

    Of SuperExec that is a warning: an attempt has ended before its time, and another one follows. Of a node it is all
    but details, such as tracebacks, which many nodes may share.
    """
    if line.source == SUPEREXEC:
        return line.level == "WARNING"
    return line.source == SERVERAPP or line.level != "DEBUG"


def labelled(line: LogLine) -> str:
    """A line of the log, with its source unless that is the ServerApp."""
    return line.text if line.source == SERVERAPP else f"[{line.source}] {line.text}"


def round_line(run: RunRow, found: RoundRow) -> str:
    """A round in one line."""
    parts = [round_title(run, found), f"{found.nodes} nodes", *metric_words(found.metrics)]
    if found.errors:
        parts.append(f"{found.errors} errors")
    if found.duration is not None:
        parts.append(duration(found.duration))
    return "  ".join(parts)


def round_title(run: RunRow, found: RoundRow) -> str:
    """Which round, and of how many if that is known."""
    return f"round {found.round}/{run.rounds_planned}" if run.rounds_planned else f"round {found.round}"


def metric_words(metrics: Mapping[str, float]) -> list[str]:
    """The metrics that say most: see `main_metrics`."""
    return [f"{name} {number(metrics[name])}" for name in main_metrics(metrics)[:_MOST_METRICS]]


def main_metrics(names: Iterable[str]) -> list[str]:
    """The names of metrics, those first that say most: what the server measured, and of each kind the loss first.

    The nodes' metrics have `train_` or `eval_` in front (`flq.apps.strategy.history`).
    """
    return sorted(
        names, key=lambda name: (name.startswith(("train_", "eval_")), "loss" not in name, "acc" not in name, name)
    )


def ended(run: RunRow) -> str:
    """How a run ended, in one line."""
    time = "" if run.finished_at is None else f" after {duration(run.finished_at - run.created_at)}"
    reason = f": {run.reason}" if run.reason else ""
    return f"{run.name} {run.outcome}{time}{reason}"


def failure_of(run: RunRow) -> Failure | None:
    """What is wrong with a finished run; None if it completed."""
    if run.outcome is Outcome.COMPLETED:
        return None
    return Failure(f"run_{run.outcome}", ended(run), f"flq show {run.name}")
