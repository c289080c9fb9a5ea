"""Content-addressed payloads and app bundles."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, Integer, Text
from sqlalchemy.orm import Mapped, mapped_column

from flq.models.base import OBJECT_HOLDER, Base, Bytes, Created, Hash, ObjectHolder, Ref, Time


class Bundle(Base):
    """A packed app project, by the sha256 of its bytes."""

    __tablename__ = "bundle"
    __table_args__ = (CheckConstraint("octet_length(bundle_hash) = 32", name="sha256"),)

    bundle_hash: Mapped[Hash] = mapped_column(primary_key=True)
    data: Mapped[Bytes]
    created_at: Mapped[Created]


class Object(Base):
    """An object that is complete: the row is written last.

    Its bytes are in `object_chunk`, or in a file below `directory`, if that is set.
    """

    __tablename__ = "object"
    __table_args__ = (
        CheckConstraint("octet_length(object_hash) = 32", name="sha256"),
        CheckConstraint("size >= 0", name="size_not_negative"),
    )

    object_hash: Mapped[Hash] = mapped_column(primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    directory: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[Created]


class ObjectUpload(Base):
    """An upload under way that takes several transactions, or one that was broken off: it can go on, for a day."""

    __tablename__ = "object_upload"
    __table_args__ = (Index(None, "touched_at"),)

    object_hash: Mapped[Hash] = mapped_column(primary_key=True)
    directory: Mapped[str | None] = mapped_column(Text)
    touched_at: Mapped[Created]


class ObjectChunk(Base):
    """A row of 1 MiB of an object, the last one shorter. Stored out of line and never compressed."""

    __tablename__ = "object_chunk"

    object_hash: Mapped[Hash] = mapped_column(primary_key=True)
    sequence: Mapped[int] = mapped_column(Integer, primary_key=True)
    data: Mapped[Bytes]


class ObjectRef(Base):
    """What holds an object."""

    __tablename__ = "object_ref"
    __table_args__ = (Index("ix_object_ref_holder", "run_id", "holder", "holder_id"),)

    object_hash: Mapped[Hash] = mapped_column(ForeignKey(Object.object_hash), primary_key=True)
    holder: Mapped[ObjectHolder] = mapped_column(OBJECT_HOLDER, primary_key=True)
    holder_id: Mapped[Ref] = mapped_column(primary_key=True)
    run_id: Mapped[Ref]


class ObjectPin(Base):
    """Keeps an object for a while after somebody asked whether it is there.

    It is also how the collector finds what to look at: an object is stored with a pin, and who takes a reference away
    leaves a pin that has passed. So every object has a reference or a pin, and one pin that has passed is one look.
    """

    __tablename__ = "object_pin"
    __table_args__ = (Index(None, "pinned_until"),)

    object_hash: Mapped[Hash] = mapped_column(primary_key=True)
    pinned_until: Mapped[Time]
