"""The declarative base, the column types that PostgreSQL has and SQLAlchemy does not, and the enums."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from sqlalchemy import BigInteger, DateTime, Enum, Identity, LargeBinary, MetaData, Text, text
from sqlalchemy.dialects.postgresql import JSONB, UUID
from sqlalchemy.dialects.postgresql.base import ischema_names
from sqlalchemy.orm import DeclarativeBase, mapped_column
from sqlalchemy.types import UserDefinedType

from flq.wire import grid, status

SCHEMA = "flq_state"
VIEW_SCHEMA = "flq"


class Xid8(UserDefinedType[int]):
    """`xid8`, a transaction id that never wraps around."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """The type's name in DDL."""
        return "XID8"


ischema_names["xid8"] = Xid8  # so that the comparison of models and database knows it


class Base(DeclarativeBase):
    """Base of every table. Columns are NOT NULL unless their type says `| None`."""

    metadata = MetaData(
        schema=SCHEMA,
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
        },
    )


class ObjectHolder(StrEnum):
    """What keeps an object from being collected."""

    BATCH = "batch"
    RESULT = "result"
    CHECKPOINT = "checkpoint"
    ARTIFACT = "artifact"


def enum(kind: type[StrEnum], name: str) -> Enum:
    """A native PostgreSQL enum in our schema, whose labels are the members' values."""
    return Enum(kind, name=name, schema=SCHEMA, values_callable=lambda members: [member.value for member in members])


RUN_STATUS = enum(status.RunStatus, "run_status")
OUTCOME = enum(status.Outcome, "outcome")
ATTEMPT_STATUS = enum(status.AttemptStatus, "attempt_status")
RESULT_STATUS = enum(status.ResultStatus, "result_status")
PROCESS_KIND = enum(status.ProcessKind, "process_kind")
OBJECT_HOLDER = enum(ObjectHolder, "object_holder")
STEP_KIND = enum(grid.StepKind, "step_kind")

CLOCK = text("clock_timestamp()")

Id = Annotated[int, mapped_column(BigInteger, Identity(always=True), primary_key=True)]
Ref = Annotated[int, mapped_column(BigInteger)]
Hash = Annotated[bytes, mapped_column(LargeBinary)]
Bytes = Annotated[bytes, mapped_column(LargeBinary)]
Json = Annotated[dict[str, Any], mapped_column(JSONB, server_default=text("'{}'::jsonb"))]
Str = Annotated[str, mapped_column(Text)]
ProcessId = Annotated[str, mapped_column(UUID(as_uuid=False))]
Time = Annotated[datetime, mapped_column(DateTime(timezone=True))]
Created = Annotated[datetime, mapped_column(DateTime(timezone=True), server_default=CLOCK)]
Xid = Annotated[int, mapped_column(Xid8, server_default=text("pg_current_xact_id()"))]
