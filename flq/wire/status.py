"""States and their legal transitions. The database checks the same ones; `docs/states.md` draws them."""

from __future__ import annotations

from enum import StrEnum


class RunStatus(StrEnum):
    """Where a run stands."""

    PENDING = "pending"
    STARTING = "starting"
    RUNNING = "running"
    FINISHED = "finished"


class Outcome(StrEnum):
    """How a run ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    STOPPED = "stopped"


class AttemptStatus(StrEnum):
    """Where an attempt of a run stands: published to Celery, claimed by a SuperExec, or over."""

    PUBLISHED = "published"
    CLAIMED = "claimed"
    ENDED = "ended"


class ResultStatus(StrEnum):
    """How a task ended."""

    OK = "ok"
    ERROR = "error"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class Verdict(StrEnum):
    """What the SuperLink says of a submitted result."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    FENCED = "fenced"


class ProcessKind(StrEnum):
    """The long-running processes of a federation."""

    SUPERLINK = "superlink"
    SUPERNODE = "supernode"
    SUPEREXEC = "superexec"


RUN_TRANSITIONS: frozenset[tuple[RunStatus, RunStatus]] = frozenset(
    {
        (RunStatus.PENDING, RunStatus.STARTING),
        (RunStatus.STARTING, RunStatus.RUNNING),
        (RunStatus.RUNNING, RunStatus.FINISHED),
        (RunStatus.PENDING, RunStatus.FINISHED),  # stopped or failed before it started
        (RunStatus.STARTING, RunStatus.FINISHED),  # likewise
        (RunStatus.STARTING, RunStatus.PENDING),  # a new attempt
        (RunStatus.RUNNING, RunStatus.PENDING),  # a new attempt
        (RunStatus.FINISHED, RunStatus.PENDING),  # resume, unless it completed
    }
)
