"""What the federation keeps about itself: settings that all processes share, and what its sweeps have done."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import BigInteger, Index, Interval, Text, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from flq.models.base import Base, Created, Id, Str


class Setting(Base):
    """A setting on which every process has to agree, such as where objects are stored."""

    __tablename__ = "setting"

    name: Mapped[Str] = mapped_column(primary_key=True)
    value: Mapped[object] = mapped_column(JSONB)
    changed_at: Mapped[Created]


class MaintenanceRun(Base):
    """A run of a sweep that did something or failed; and one row for each sweep's last run that did nothing."""

    __tablename__ = "maintenance_run"
    __table_args__ = (
        Index("uq_maintenance_run_idle", "name", unique=True, postgresql_where=text("done = 0 AND error IS NULL")),
        {"postgresql_with": {"fillfactor": 50}},
    )

    maintenance_id: Mapped[Id]
    name: Mapped[Str]
    at: Mapped[Created]
    duration: Mapped[timedelta] = mapped_column(Interval)
    done: Mapped[int] = mapped_column(BigInteger)
    error: Mapped[str | None] = mapped_column(Text)
