"""Processes and nodes."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Index, Integer, text
from sqlalchemy.orm import Mapped, mapped_column

from flq.models.base import PROCESS_KIND, Base, Created, Json, ProcessId, Str, Time
from flq.wire.status import ProcessKind


class Process(Base):
    """A process instance of the federation. Heartbeats touch this table only."""

    __tablename__ = "process"
    __table_args__ = (
        CheckConstraint("slots >= 0", name="slots_not_negative"),
        CheckConstraint("jobs_missed >= 0 AND consumer_restarts >= 0", name="consumption_not_negative"),
        {"postgresql_with": {"fillfactor": 50}},
    )

    process_id: Mapped[ProcessId] = mapped_column(primary_key=True)
    kind: Mapped[ProcessKind] = mapped_column(PROCESS_KIND)
    host: Mapped[Str]
    pid: Mapped[int] = mapped_column(Integer)
    version: Mapped[Str]
    slots: Mapped[int] = mapped_column(Integer)
    started_at: Mapped[Created]
    alive_until: Mapped[Time] = mapped_column(server_default=text("'-infinity'"))
    consumed_at: Mapped[Time | None]
    """Of a SuperExec: when it last took a housekeeping job from the broker."""
    jobs_missed: Mapped[int] = mapped_column(Integer, server_default="0")
    """How many housekeeping jobs in a row it has not taken since."""
    consumer_restarts: Mapped[int] = mapped_column(Integer, server_default="0")
    """How often it has connected to the broker anew for that."""


class Node(Base):
    """A SuperNode's identity: it survives restarts. Node 1 is the SuperLink in messages and has no row."""

    __tablename__ = "node"
    __table_args__ = (
        CheckConstraint("name <> ''", name="name_not_empty"),
        CheckConstraint("node_id > 1", name="one_is_the_superlink"),
        Index(None, "process_id"),
    )

    node_id: Mapped[int] = mapped_column(BigInteger, Identity(always=True, start=2), primary_key=True)
    name: Mapped[Str] = mapped_column(unique=True)
    public_key: Mapped[bytes | None]
    config: Mapped[Json]
    labels: Mapped[Json]
    process_id: Mapped[ProcessId | None] = mapped_column(ForeignKey(Process.process_id))
    epoch: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    created_at: Mapped[Created]
    connected_at: Mapped[Time | None]
