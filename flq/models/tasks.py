"""Batches, open tasks, and what became of them.

`task`, `task_message`, `task_attempt`, `result`, `client_state` and `log_line` are written in bulk and carry no foreign
keys: three of them cut a push from 312,000 to 77,000 tasks a second. The statements that write them lock and check the
parents.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    Integer,
    SmallInteger,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from flq.models.base import (
    RESULT_STATUS,
    STEP_KIND,
    Base,
    Bytes,
    Created,
    Hash,
    Id,
    Json,
    ProcessId,
    Ref,
    Str,
    Time,
    Xid,
)
from flq.models.runs import Run
from flq.wire.grid import StepKind
from flq.wire.status import ResultStatus

ZERO = text("0")
NEVER = text("'-infinity'")


class Batch(Base):
    """One push: messages of one type to a set of nodes. `manifest` is NULL when each node gets one of its own."""

    __tablename__ = "batch"
    __table_args__ = (
        UniqueConstraint("run_id", "branch", "sequence"),
        CheckConstraint("tasks > 0", name="has_tasks"),
        Index(None, "run_id", "round"),
    )

    batch_id: Mapped[Id]
    run_id: Mapped[Ref] = mapped_column(ForeignKey(Run.run_id))
    branch: Mapped[int] = mapped_column(Integer)
    sequence: Mapped[Ref]
    attempt: Mapped[int] = mapped_column(Integer)
    kind: Mapped[Str]
    group_id: Mapped[Str]
    round: Mapped[int | None] = mapped_column(Integer)
    tasks: Mapped[int] = mapped_column(Integer)
    deadline: Mapped[Time]
    content_hash: Mapped[bytes]
    manifest: Mapped[bytes | None]
    created_at: Mapped[Created]


class Step(Base):
    """A push or a checkpoint of a ServerApp, numbered in program order.

    `delivered` is what the app was given since the step before: lists of nodes, and replies as runs of task ids
    `[first, count]`. The next attempt is given the same.
    """

    __tablename__ = "step"

    run_id: Mapped[Ref] = mapped_column(ForeignKey(Run.run_id), primary_key=True)
    branch: Mapped[int] = mapped_column(Integer, primary_key=True)
    sequence: Mapped[Ref] = mapped_column(primary_key=True)
    kind: Mapped[StepKind] = mapped_column(STEP_KIND)
    attempt: Mapped[int] = mapped_column(Integer)
    delivered: Mapped[list[Any]] = mapped_column(JSONB, server_default=text("'[]'::jsonb"))
    made_at: Mapped[Created]


class NodeList(Base):
    """A list of nodes that was delivered to a ServerApp, once for all steps that it was delivered with."""

    __tablename__ = "node_list"

    run_id: Mapped[Ref] = mapped_column(ForeignKey(Run.run_id), primary_key=True)
    list_hash: Mapped[Hash] = mapped_column(primary_key=True)
    nodes: Mapped[list[Any]] = mapped_column(JSONB)


class TaskMessage(Base):
    """The message of one task, where the nodes of a batch get different ones."""

    __tablename__ = "task_message"

    batch_id: Mapped[Ref] = mapped_column(primary_key=True, autoincrement=False)
    task_id: Mapped[Ref] = mapped_column(primary_key=True, autoincrement=False)
    manifest: Mapped[Bytes]


class Task(Base):
    """An open task. Queued while `lease_until` has passed, leased while it has not, finished when the row is gone.

    A claim changes no indexed column, so that it is a heap-only update in the half page that is left free.
    """

    __tablename__ = "task"
    __table_args__ = (
        Index(None, "batch_id"),
        {
            "postgresql_with": {
                "fillfactor": 50,
                "autovacuum_vacuum_scale_factor": 0.02,
                "autovacuum_vacuum_threshold": 1000,
                "autovacuum_vacuum_cost_delay": 0,
            }
        },
    )

    node_id: Mapped[Ref] = mapped_column(primary_key=True, autoincrement=False)
    run_id: Mapped[Ref] = mapped_column(primary_key=True, autoincrement=False)
    task_id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    batch_id: Mapped[Ref]
    token: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    epoch: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    attempt: Mapped[int] = mapped_column(SmallInteger, server_default=ZERO)
    process_id: Mapped[ProcessId | None]
    claimed_at: Mapped[Time | None]
    lease_until: Mapped[Time] = mapped_column(server_default=NEVER)


class TaskAttempt(Base):
    """An ended attempt at a task."""

    __tablename__ = "task_attempt"

    task_id: Mapped[Ref] = mapped_column(primary_key=True, autoincrement=False)
    attempt: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    run_id: Mapped[Ref]
    node_id: Mapped[Ref]
    process_id: Mapped[ProcessId]
    claimed_at: Mapped[Time]
    ended_at: Mapped[Created]
    reason: Mapped[Str]


class Result(Base):
    """The one end of a task: a reply, or the error that stands for it. Append-only."""

    __tablename__ = "result"
    __table_args__ = (
        CheckConstraint("(status = 'ok') = (manifest IS NOT NULL)", name="manifest_iff_ok"),
        CheckConstraint("(status = 'ok') = (error_code IS NULL)", name="error_code_unless_ok"),
        Index(None, "batch_id", "xid"),
        {"postgresql_partition_by": "RANGE (batch_id)"},
    )

    batch_id: Mapped[Ref] = mapped_column(primary_key=True, autoincrement=False)
    task_id: Mapped[Ref] = mapped_column(primary_key=True, autoincrement=False)
    run_id: Mapped[Ref]
    node_id: Mapped[Ref]
    status: Mapped[ResultStatus] = mapped_column(RESULT_STATUS)
    error_code: Mapped[int | None] = mapped_column(SmallInteger)
    error_text: Mapped[str | None] = mapped_column(Text)
    manifest: Mapped[bytes | None]
    metrics: Mapped[Json]
    payload_bytes: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    attempt: Mapped[int] = mapped_column(SmallInteger)
    token: Mapped[Ref]
    process_id: Mapped[ProcessId | None]
    claimed_at: Mapped[Time | None]
    started_at: Mapped[Time | None]
    ended_at: Mapped[Created]
    xid: Mapped[Xid]


class ClientState(Base):
    """A version of a node's client state in a run: an accepted reply of this task has left it on the node's disk.

    Append-only, like the results: a version whose file is gone is still what a task starts from, and missing then.
    """

    __tablename__ = "client_state"

    run_id: Mapped[Ref] = mapped_column(primary_key=True, autoincrement=False)
    node_id: Mapped[Ref] = mapped_column(primary_key=True, autoincrement=False)
    task_id: Mapped[Ref] = mapped_column(primary_key=True, autoincrement=False)
    batch_id: Mapped[Ref]


class LogLine(Base):
    """A line of output of a ServerApp, of a node's ClientApp, or of the SuperExec about the run."""

    __tablename__ = "log_line"
    __table_args__ = (Index(None, "run_id", "xid"), {"postgresql_partition_by": "RANGE (at)"})

    at: Mapped[Time] = mapped_column(primary_key=True)
    line_id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    run_id: Mapped[Ref]
    source: Mapped[Str]
    level: Mapped[Str]
    text: Mapped[Str]
    xid: Mapped[Xid]
