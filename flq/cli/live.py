"""A followed run on a terminal: finished rounds and output scroll by above a bar for the round at work."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from flq.cli.views import SERVERAPP, FinishedRounds, ended, is_shown, metric_words, round_line, round_title
from flq.wire.runs import LogLine, RoundRow, RunRow
from flq.wire.status import Outcome

BAR_WIDTH = 32
_STYLES = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "bold red"}


class LiveView:
    """Draws on stdout. A context, so that the terminal is left in order."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._live = Live(console=self._console, transient=True, refresh_per_second=8)
        self._finished = FinishedRounds()
        self._reason = ""

    def __enter__(self) -> LiveView:  # noqa: PYI034 - nobody derives from it
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def lines(self, lines: Sequence[LogLine]) -> None:
        """Print output above the bar."""
        for line in lines:
            if is_shown(line):
                self._console.print(_log_text(line), soft_wrap=True)

    def rounds(self, run: RunRow, rounds: Sequence[RoundRow]) -> None:
        """Print rounds that have finished, and draw the one at work."""
        working = [found for found in rounds if found.status == "running"]
        self._live.update(Group(*(_bar(run, found) for found in working), self._status(run)), refresh=True)
        for found in self._finished.new(rounds):
            self._console.print(Text.assemble(("✓ ", "green"), round_line(run, found)))

    def waiting(self, reason: str) -> None:
        """Say in the last line what the run waits for."""
        self._reason = reason

    def end(self, run: RunRow) -> None:
        """Take the bar away, and say why the run was cut; of one that completed, the last word is its app's."""
        self._live.stop()
        if run.outcome is not Outcome.COMPLETED:
            Console(stderr=True, highlight=False).print(Text(ended(run), style="red"), soft_wrap=True)

    def _status(self, run: RunRow) -> RenderableType:
        words = f"{run.name} {run.status}"
        if run.attempt > 1:
            words += f", attempt {run.attempt}"
        if run.running_at is None and self._reason:
            words += f": {self._reason}"
        return Spinner("dots", Text(words, style="dim"))


def _bar(run: RunRow, found: RoundRow) -> RenderableType:
    row = Table.grid(padding=(0, 1))
    row.add_row(
        round_title(run, found),
        ProgressBar(total=max(found.tasks, 1), completed=found.done, width=BAR_WIDTH),
        f"{found.done}/{found.tasks}",
        "  ".join(metric_words(found.metrics)),
    )
    return row


def _log_text(line: LogLine) -> Text:
    text = Text.from_ansi(line.text, style=_STYLES.get(line.level, ""))
    return text if line.source == SERVERAPP else Text.assemble((f"[{line.source}] ", "cyan"), text)
