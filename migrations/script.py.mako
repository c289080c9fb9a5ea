"""${message}

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from flq.link.migrating import lock_tables
${imports if imports else ""}
revision: str = ${repr(up_revision)}
down_revision: str | None = ${repr(down_revision)}


def upgrade() -> None:
    """Go to this revision."""
    lock_tables(op.get_bind())
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    """Go back to the one before."""
    lock_tables(op.get_bind())
    ${downgrades if downgrades else "pass"}
