"""A Control for tests of the command line: answers what it is given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from flq.errors import ArtifactUnknown, QueryError, RunUnknown
from flq.wire.ids import NodeId, ObjectHash, RunId
from flq.wire.runs import (
    ArtifactRow,
    AttemptRow,
    Cause,
    Derivation,
    EventRow,
    FeedCursor,
    LogLine,
    LogPage,
    NodeRow,
    RoundRow,
    RunRow,
    Submission,
    SuperExecRow,
    Table,
)
from flq.wire.status import AttemptStatus, Outcome, RunStatus

THEN = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)

RUN = RunRow(
    run_id=RunId(7),
    name="brave-otter",
    app="digits",
    owner="ada",
    status=RunStatus.RUNNING,
    outcome=None,
    reason=None,
    attempt=1,
    rounds_planned=3,
    rounds_done=1,
    tasks_open=2,
    results_ok=10,
    results_error=1,
    stop_requested=False,
    config={"lr": 0.1},
    select=(),
    bundle=ObjectHash(b"\xab" * 32),
    created_at=THEN,
    started_at=THEN,
    running_at=THEN,
    finished_at=None,
)
DONE = replace(
    RUN, status=RunStatus.FINISHED, outcome=Outcome.COMPLETED, rounds_done=3, finished_at=THEN + timedelta(seconds=4.2)
)
FAILED = replace(DONE, outcome=Outcome.FAILED, reason="ServerApp raised ValueError: boom")

ROUND = RoundRow(
    round=1,
    status="committed",
    nodes=2,
    tasks=4,
    done=4,
    errors=0,
    duration=timedelta(milliseconds=120),
    metrics={"loss": 0.5, "accuracy": 0.81234},
)
NODE = NodeRow(
    node_id=NodeId(2),
    name="node-1",
    online=True,
    config={"partition-id": 0},
    labels={"site": "berlin"},
    epoch=1,
    host="vm",
    pid=99,
    version="0.1",
    tasks_open=2,
    tasks_leased=1,
    last_seen_at=THEN,
)
SUPEREXEC = SuperExecRow(
    process_id="5e" * 16,
    host="vm",
    pid=98,
    version="0.1",
    online=True,
    consuming=True,
    slots=4,
    slots_taken=1,
    consumed_at=THEN,
    jobs_missed=0,
    consumer_restarts=0,
)
ATTEMPT = AttemptRow(
    attempt=1,
    status=AttemptStatus.ENDED,
    host="vm",
    pid=5,
    job_id="job-1",
    exit_code=1,
    error="Traceback:\n  line 3\nValueError: boom",
    published_at=THEN,
    claimed_at=THEN,
    ended_at=THEN + timedelta(seconds=1),
)


def line(text: str, source: str = "serverapp", level: str = "INFO", line_id: int = 1) -> LogLine:
    """A line of a log."""
    return LogLine(at=THEN + timedelta(milliseconds=line_id), source=source, level=level, text=text, line_id=line_id)


class ControlDouble:
    """One run, whose row is the next of `rows` each time, the last one for ever; its log comes in `pages`."""

    def __init__(
        self, *rows: RunRow, pages: Iterable[Sequence[LogLine]] = (), rounds: Sequence[RoundRow] = (ROUND,)
    ) -> None:
        self.rows = list(rows or (RUN,))
        self.pages: list[Sequence[LogLine]] = list(pages)
        self.round_rows = list(rounds)
        self.asked_since: list[int] = []
        self.node_rows = [NODE]
        self.superexec_rows = [SUPEREXEC]
        self.files = {"model.bin": b"weights", "plots/loss.txt": b"", "../evil": b"x"}
        self.stored = ["model.bin", "plots/loss.txt"]
        self.submitted: list[Submission] = []
        self.stopped: list[tuple[str, str, str | None]] = []
        self.queries: list[str] = []
        self.answer = Table(("run", "n"), (("brave-otter", 1), ("calm-fox", None)))
        self.causes: list[tuple[str, str]] = []
        self.derived: list[tuple[str, Derivation]] = []
        self.resumed: list[tuple[str, float | None]] = []
        self.closed = False
        self.errors: list[Exception] = []

    def submit(self, submission: Submission) -> RunRow:
        self._fail()
        self.submitted.append(submission)
        return self.rows[0]

    def runs(self, *, limit: int = 100) -> list[RunRow]:
        return self.rows[:limit]

    def run(self, run: str) -> RunRow:
        self._fail()
        if run not in {self.rows[0].name, str(self.rows[0].run_id)}:
            raise RunUnknown(f"there is no run {run!r}", hint="`flq ls` lists the runs")
        return self.rows.pop(0) if len(self.rows) > 1 else self.rows[0]

    def finished(self, run: str) -> bool:
        return self.run(run).status is RunStatus.FINISHED

    def attempts(self, run: str) -> list[AttemptRow]:
        return [ATTEMPT]

    def rounds(self, run: str, *, since: int = 1) -> list[RoundRow]:
        self.asked_since.append(since)
        return [found for found in self.round_rows if found.round >= since]

    def events(self, run: str) -> list[EventRow]:
        return [EventRow(at=THEN, event="submitted", actor="ada", reason=None)]

    def waiting(self, run: str) -> list[Cause]:
        return [Cause(*cause) for cause in self.causes]

    def derive(self, run: str, derivation: Derivation) -> RunRow:
        self._fail()
        self.derived.append((run, derivation))
        return self.rows[0]

    def resume(self, run: str, *, actor: str, wall_time_limit: float | None = None) -> RunRow:
        self._fail()
        self.resumed.append((run, wall_time_limit))
        return self.rows[0]

    def stop(self, run: str, *, actor: str, reason: str | None = None) -> RunRow:
        self.stopped.append((run, actor, reason))
        return self.run(run)

    def logs(self, run: str, cursor: FeedCursor) -> LogPage:
        lines: Sequence[LogLine] = self.pages.pop(0) if self.pages else ()
        return LogPage(tuple(lines), FeedCursor(xmin=cursor.xmin + 1))

    def wait(self, seconds: float) -> None:
        self._fail()

    def artifacts(self, run: str) -> list[ArtifactRow]:
        return [
            ArtifactRow(name=name, hash=ObjectHash(b"\x01" * 32), size=len(self.files[name]), created_at=THEN)
            for name in self.stored
        ]

    def artifact(self, run: str, name: str, into: memoryview) -> None:
        if name not in self.files:
            raise ArtifactUnknown
        into[:] = self.files[name]

    def nodes(self) -> list[NodeRow]:
        return self.node_rows

    def superexecs(self) -> list[SuperExecRow]:
        return self.superexec_rows

    def query(self, sql: str, parameters: Sequence[object] = ()) -> Table:
        self.queries.append(sql)
        if "nonsense" in sql:
            raise QueryError("syntax error at or near nonsense")
        return self.answer

    def resolve(self, run: str) -> RunId:
        return self.rows[0].run_id

    def close(self) -> None:
        self.closed = True

    def _fail(self) -> None:
        if self.errors:
            raise self.errors.pop(0)
