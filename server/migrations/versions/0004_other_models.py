"""Evaluations tell of all models of a state, not only of the one that decides."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; in older evaluations there was one model."""
    op.add_column(
        "evaluations",
        sa.Column("others", sa.Text(), nullable=False, server_default=sa.text("'{}'")),
    )
