"""Control: the door for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from flq.wire.ids import RunId
from flq.wire.runs import (
    ArtifactRow,
    AttemptRow,
    Cause,
    Derivation,
    EventRow,
    FeedCursor,
    LogPage,
    NodeRow,
    RoundRow,
    RunRow,
    Submission,
    SuperExecRow,
    Table,
)


class Control(Protocol):
    """What a person does with a federation. `run` arguments are a run's name, or its id in digits."""

    def submit(self, submission: Submission) -> RunRow:
        """Record a run and its bundle in one transaction.

        A run that was returned here MUST NOT be lost. A repeated submission with the same owner and idempotency
        key MUST return the run that exists.
        """

    def derive(self, run: str, derivation: Derivation) -> RunRow:
        """Record a run that goes on behind a round of `run`, or repeats it from scratch, in one transaction.

        What holds of `submit` MUST hold of it. Raises `RunUnknown`, or `CheckpointUnknown` if that round is not kept.
        """

    def resume(self, run: str, *, actor: str, wall_time_limit: float | None = None) -> RunRow:
        """Have a run that has failed or was stopped go on behind its last commit.

        `wall_time_limit` is its new limit in seconds, over all of its attempts; None leaves it as it is. Raises
        `RunUnknown`, or `IllegalTransition` if it is not finished, has completed, has no time left, or was pruned.
        """

    def runs(self, *, limit: int = 100) -> list[RunRow]:
        """The newest `limit` runs, newest first."""

    def run(self, run: str) -> RunRow:
        """One run. Raises `RunUnknown`."""

    def finished(self, run: str) -> bool:
        """Whether a run is finished. Costs the same however long it has gone on. Raises `RunUnknown`."""

    def attempts(self, run: str) -> list[AttemptRow]:
        """The attempts of a run, in order. Raises `RunUnknown`."""

    def rounds(self, run: str, *, since: int = 1) -> list[RoundRow]:
        """The rounds of a run from `since` on, in order. Raises `RunUnknown`."""

    def events(self, run: str) -> list[EventRow]:
        """The history of a run, oldest first. Raises `RunUnknown`."""

    def waiting(self, run: str) -> list[Cause]:
        """Why the run does not go on at this moment, what weighs most first; empty if nothing keeps it.

        Raises `RunUnknown`.
        """

    def stop(self, run: str, *, actor: str, reason: str | None = None) -> RunRow:
        """Ask the run to stop; a pending one is finished at once. Stopping a finished run changes nothing.

        Raises `RunUnknown`.
        """

    def logs(self, run: str, cursor: FeedCursor) -> LogPage:
        """What the run and its nodes have printed since `cursor`. Raises `RunUnknown`."""

    def wait(self, seconds: float) -> None:
        """Return when something has happened to some run, or after `seconds`."""

    def artifacts(self, run: str) -> list[ArtifactRow]:
        """The files that the run stored, by name. Raises `RunUnknown`."""

    def artifact(self, run: str, name: str, into: memoryview) -> None:
        """Fill `into`, whose length is the artifact's size. Raises `RunUnknown`, `ArtifactUnknown`, `ObjectCorrupt`."""

    def nodes(self) -> list[NodeRow]:
        """Every node that the federation knows, by id."""

    def superexecs(self) -> list[SuperExecRow]:
        """Every SuperExec that the federation knows, the oldest first."""

    def query(self, sql: str, parameters: Sequence[object] = ()) -> Table:
        """Run one read-only statement on the views of schema `flq`. Raises `QueryError`."""

    def resolve(self, run: str) -> RunId:
        """The id of a run. Raises `RunUnknown`."""

    def close(self) -> None:
        """Give back what the door holds."""
