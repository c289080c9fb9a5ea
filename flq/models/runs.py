"""Runs, their attempts, their history, and what they commit."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Double,
    ForeignKey,
    Index,
    Integer,
    Interval,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from flq.models.base import (
    ATTEMPT_STATUS,
    OUTCOME,
    RUN_STATUS,
    Base,
    Created,
    Id,
    Json,
    ProcessId,
    Ref,
    Str,
    Time,
    Xid,
)
from flq.models.federation import Node, Process
from flq.models.objects import Bundle, Object
from flq.wire.status import AttemptStatus, Outcome, RunStatus

ZERO = text("0")


class Run(Base):
    """One execution of an app on a federation.

    `attempt_token` is that of the current attempt, or 0: a ServerApp's writes lock this row and compare it, so
    that only a take-over fences an attempt, never a clock. Quotas that are NULL are those of `setting`; of the
    checkpoints the newest `keep_checkpoints` keep their state, 0 being all and NULL three.

    `active_time` is how long earlier attempts were starting and running, for the wall-time limit. Attempts up to number
    `excused_attempts` do not count towards their cap; before `not_before` no other one begins.
    """

    __tablename__ = "run"
    __table_args__ = (
        UniqueConstraint("owner", "idempotency_key"),
        CheckConstraint("(status = 'finished') = (outcome IS NOT NULL)", name="outcome_iff_finished"),
        CheckConstraint("(status = 'finished') = (finished_at IS NOT NULL)", name="finished_at_iff_finished"),
        CheckConstraint(
            "status NOT IN ('starting', 'running') OR starting_at IS NOT NULL", name="starting_at_if_begun"
        ),
        CheckConstraint("status <> 'running' OR running_at IS NOT NULL", name="running_at_if_running"),
        CheckConstraint("(attempt_token <> 0) = (status IN ('starting', 'running'))", name="token_iff_active"),
        CheckConstraint("(outcome IN ('failed', 'stopped')) IS NOT TRUE OR reason IS NOT NULL", name="reason_if_cut"),
        CheckConstraint("weight > 0", name="weight_positive"),
        CheckConstraint("min_nodes >= 0", name="min_nodes_not_negative"),
        CheckConstraint("max_open_tasks > 0 AND max_bytes > 0", name="quotas_positive"),
        CheckConstraint("keep_checkpoints >= 0", name="keep_checkpoints_not_negative"),
        CheckConstraint("pruned_at IS NULL OR status = 'finished'", name="pruned_if_finished"),
        CheckConstraint("forked_from_round IS NOT NULL OR forked_from IS NULL", name="round_if_forked"),
        CheckConstraint("name ~ '^[a-z0-9][a-z0-9-]{0,62}$'", name="name_form"),
        Index("ix_run_unfinished", "priority", "run_id", postgresql_where=text("status <> 'finished'")),
    )

    run_id: Mapped[Id]
    name: Mapped[Str] = mapped_column(unique=True)
    app: Mapped[Str]
    bundle_hash: Mapped[bytes] = mapped_column(ForeignKey(Bundle.bundle_hash))
    config: Mapped[Json]
    seed: Mapped[int] = mapped_column(BigInteger)
    owner: Mapped[Str]
    idempotency_key: Mapped[Str]
    node_selector: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'::text[]"))
    min_nodes: Mapped[int] = mapped_column(Integer, server_default=ZERO)
    priority: Mapped[int] = mapped_column(Integer, server_default=ZERO)
    weight: Mapped[float] = mapped_column(Double, server_default=text("1"))
    wall_time_limit: Mapped[timedelta | None] = mapped_column(Interval)
    max_open_tasks: Mapped[int | None] = mapped_column(BigInteger)
    max_bytes: Mapped[int | None] = mapped_column(BigInteger)
    keep_replies: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    keep_checkpoints: Mapped[int | None] = mapped_column(Integer)
    rounds_planned: Mapped[int | None] = mapped_column(Integer)
    status: Mapped[RunStatus] = mapped_column(RUN_STATUS, server_default=text("'pending'"))
    outcome: Mapped[Outcome | None] = mapped_column(OUTCOME)
    reason: Mapped[str | None] = mapped_column(Text)
    attempt: Mapped[int] = mapped_column(Integer, server_default=ZERO)
    attempt_token: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    branch: Mapped[int] = mapped_column(Integer, server_default=ZERO)
    stop_requested_at: Mapped[Time | None]
    forked_from: Mapped[int | None] = mapped_column(BigInteger, ForeignKey("flq_state.run.run_id"))
    forked_from_round: Mapped[int | None] = mapped_column(Integer)
    rerun_of: Mapped[int | None] = mapped_column(BigInteger, ForeignKey("flq_state.run.run_id"))
    excused_attempts: Mapped[int] = mapped_column(Integer, server_default=ZERO)
    not_before: Mapped[Time | None]
    active_time: Mapped[timedelta] = mapped_column(Interval, server_default=text("'00:00:00'"))
    created_at: Mapped[Created]
    starting_at: Mapped[Time | None]
    running_at: Mapped[Time | None]
    finished_at: Mapped[Time | None]
    pruned_at: Mapped[Time | None]


class RunAttempt(Base):
    """One execution of a run's ServerApp: published as a job, claimed by a SuperExec, ended."""

    __tablename__ = "run_attempt"
    __table_args__ = (
        CheckConstraint("(status = 'ended') = (ended_at IS NOT NULL)", name="ended_at_iff_ended"),
        CheckConstraint("status <> 'claimed' OR process_id IS NOT NULL", name="process_if_claimed"),
        CheckConstraint("(process_id IS NULL) = (claimed_at IS NULL)", name="claimed_at_iff_process"),
        Index("ix_run_attempt_open", "status", postgresql_where=text("status <> 'ended'")),
    )

    run_id: Mapped[Ref] = mapped_column(ForeignKey(Run.run_id), primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    token: Mapped[Ref]
    status: Mapped[AttemptStatus] = mapped_column(ATTEMPT_STATUS, server_default=text("'published'"))
    job_id: Mapped[Str]
    publications: Mapped[int] = mapped_column(Integer, server_default=text("1"))
    process_id: Mapped[ProcessId | None] = mapped_column(ForeignKey(Process.process_id))
    pid: Mapped[int | None] = mapped_column(Integer)
    lease_until: Mapped[Time] = mapped_column(server_default=text("'-infinity'"))
    exit_code: Mapped[int | None] = mapped_column(Integer)
    error: Mapped[str | None] = mapped_column(Text)
    published_at: Mapped[Created]
    claimed_at: Mapped[Time | None]
    ended_at: Mapped[Time | None]


class RunEvent(Base):
    """The append-only history of a run."""

    __tablename__ = "run_event"
    __table_args__ = (Index(None, "run_id", "event_id"),)

    event_id: Mapped[Id]
    run_id: Mapped[Ref] = mapped_column(ForeignKey(Run.run_id))
    at: Mapped[Created]
    event: Mapped[Str]
    actor: Mapped[Str]
    reason: Mapped[str | None] = mapped_column(Text)
    details: Mapped[Json]
    xid: Mapped[Xid]


class Checkpoint(Base):
    """A committed round: what a later attempt starts from.

    `state` is the manifest of a RecordDict, and NULL once it was released: the newest few of a run keep theirs. That
    attempt leaves out the steps from `first_sequence` on up to `next_sequence`; none if it is NULL.
    """

    __tablename__ = "checkpoint"
    __table_args__ = (UniqueConstraint("run_id", "round"), CheckConstraint("round >= 0", name="round_not_negative"))

    checkpoint_id: Mapped[Id]
    run_id: Mapped[Ref] = mapped_column(ForeignKey(Run.run_id))
    round: Mapped[int] = mapped_column(Integer)
    branch: Mapped[int] = mapped_column(Integer)
    attempt: Mapped[int] = mapped_column(Integer)
    next_sequence: Mapped[Ref]
    first_sequence: Mapped[int | None] = mapped_column(BigInteger)
    state: Mapped[bytes | None]
    metrics: Mapped[Json]
    committed_at: Mapped[Created]


class Artifact(Base):
    """A file that a run stored."""

    __tablename__ = "artifact"
    __table_args__ = (UniqueConstraint("run_id", "name"), CheckConstraint("name <> ''", name="name_not_empty"))

    artifact_id: Mapped[Id]
    run_id: Mapped[Ref] = mapped_column(ForeignKey(Run.run_id))
    name: Mapped[Str]
    object_hash: Mapped[bytes] = mapped_column(ForeignKey(Object.object_hash))
    created_at: Mapped[Created]


class RoundMetric(Base):
    """A named number of a round, of the whole federation or of one node. Round 0 is the initial evaluation."""

    __tablename__ = "round_metric"
    __table_args__ = (
        UniqueConstraint("run_id", "round", "name", "node_id", postgresql_nulls_not_distinct=True),
        CheckConstraint("round >= 0", name="round_not_negative"),
    )

    metric_id: Mapped[Id]
    run_id: Mapped[Ref] = mapped_column(ForeignKey(Run.run_id))
    round: Mapped[int] = mapped_column(Integer)
    name: Mapped[Str]
    node_id: Mapped[int | None] = mapped_column(BigInteger, ForeignKey(Node.node_id))
    value: Mapped[float] = mapped_column(Double)
    recorded_at: Mapped[Created]
