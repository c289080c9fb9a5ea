"""Checkpoints of loops written by hand: what `context.checkpoint` and `context.restored` do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from flq.errors import AppError
from flq.wire.records import ConfigRecord, RecordDict

if TYPE_CHECKING:
    from flq.apps.grid import Grid

_LOOP = "flq.loop"
_STATE = "state."
_COMMITTER = "context.checkpoint"


class Checkpoints:
    """Commits the states of a loop as rounds of its run, and has the newest one."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._looked = False
        self._restored: RecordDict | None = None
        self._round: int | None = None

    @property
    def restored(self) -> RecordDict | None:
        """The state that was committed last, when it was first looked at: that goes on from there."""
        if not self._looked:
            if self._round is not None:
                raise AppError(
                    "context.restored was looked at behind a checkpoint for the first time",
                    hint="look at it before the loop: that is where a later attempt goes on",
                )
            self._looked = True
            self._restored = self._restore()
        return self._restored

    def commit(self, state: RecordDict, *, server_round: int | None, metrics: Mapping[str, float]) -> None:
        """Commit a state as a round, the one after the last unless its number is given."""
        least = 0 if self._round is None else self._round + 1
        number = max(1, least) if server_round is None else server_round
        if number < least:
            raise AppError(
                f"a checkpoint of round {number} cannot be made: the next one is {least}",
                hint="the rounds of checkpoints rise; leave `round` out to have them counted",
            )
        self._grid.commits_by(_COMMITTER)
        content = RecordDict({f"{_STATE}{name}": record for name, record in state.items()})
        content[_LOOP] = ConfigRecord({"round": number})
        self._grid.commit_round(number, content, metrics)
        self._round = number

    def _restore(self) -> RecordDict | None:
        saved = self._grid.last_checkpoint()
        if saved is None:
            return None
        if _LOOP not in saved.content:
            raise AppError(
                "the last commit of the run is not one of context.checkpoint",
                hint="Strategy.start goes on from its own commits; context.restored is for loops without it",
            )
        self._grid.continue_at(saved.position)
        self._round = saved.round
        records = saved.content.items()
        return RecordDict({name.removeprefix(_STATE): record for name, record in records if name.startswith(_STATE)})
