"""How an attempt ended: from what is known of the process to what is recorded."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from flq.exec.guard import Cause
from flq.exec.handover import Report
from flq.link.attempts import overlong
from flq.wire.status import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What is recorded of an attempt's end.

    Without an outcome the attempt is given back for the `reason`, and the run waits for the next one; without
    either there is nothing to record, since the attempt is no longer ours. `told` is the line for the run's log. An
    `excused` attempt does not count towards the cap: its SuperExec was shut down.
    """

    outcome: Outcome | None
    reason: str | None
    told: str
    exit_code: int
    error: str | None = None
    excused: bool = False

    @classmethod
    def of(cls, cause: Cause, exit_code: int, report: Report | None, limit: float | None = None) -> Ending:
        """Judge the end of a ServerApp's process, which ended for `cause`. `limit` is the run's wall-time limit."""
        if report is not None and report.outcome == "completed" and cause is not Cause.FENCED:
            return cls(outcome=Outcome.COMPLETED, reason=None, told="ServerApp completed", exit_code=exit_code)
        if cause is Cause.ITSELF:
            return _by_itself(exit_code, report)
        outcome, reason = {
            Cause.FENCED: (None, None),
            Cause.SHUTDOWN: (None, str(cause)),
            Cause.EVICTED: (None, str(cause)),
            Cause.OVERDUE: (Outcome.FAILED, str(cause) if limit is None else overlong(limit)),
            Cause.STOP: (Outcome.STOPPED, "stopped as requested"),
            Cause.TERMINATED: (Outcome.STOPPED, str(cause)),
        }[cause]
        told = f"ServerApp was ended: {reason or cause}"
        excused = cause is Cause.SHUTDOWN
        return cls(outcome=outcome, reason=reason, told=told, exit_code=exit_code, excused=excused)

    @property
    def level(self) -> str:
        """The level of `told`."""
        return {Outcome.FAILED: "ERROR", None: "WARNING"}.get(self.outcome, "INFO")


def _by_itself(exit_code: int, report: Report | None) -> Ending:
    if report is None or report.reason is None:
        death = f"ServerApp {_manner(exit_code)}"
        return Ending(outcome=None, reason=death, told=death, exit_code=exit_code)
    return Ending(
        outcome=Outcome.FAILED if report.outcome == "failed" else None,
        reason=None if report.outcome == "fenced" else report.reason,
        told=report.reason,
        exit_code=exit_code,
        error=report.error,
    )


def _manner(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exited with code {exit_code} before its main had ended"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    return f"was killed by {name}"
