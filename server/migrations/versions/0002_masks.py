"""Tasks name the masks of their payload and know when they were offered."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; of older tasks nobody will ask how long they took."""
    op.add_column("tasks", sa.Column("masks_digest", sa.String(length=64), nullable=True))
    op.add_column("tasks", sa.Column("masks_size_bytes", sa.BigInteger(), nullable=True))
    # The default stays: SQLite takes one away only by dropping the table, which updates refer to.
    op.add_column(
        "tasks", sa.Column("offered_at", sa.Double(), nullable=False, server_default=sa.text("0"))
    )
    op.execute("UPDATE tasks SET offered_at = deadline_at")
