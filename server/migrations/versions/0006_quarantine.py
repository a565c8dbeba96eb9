"""Refused updates are kept with their evidence; tasks say what their updates may claim."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table; of older tasks nothing is known that claims could be held to."""
    op.add_column("tasks", sa.Column("most_examples", sa.BigInteger()))
    op.add_column("tasks", sa.Column("most_steps", sa.BigInteger()))
    op.create_table(
        "quarantine",
        sa.Column("refusal_id", sa.Integer(), nullable=False),
        sa.Column("task_id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("round_number", sa.Integer(), nullable=False),
        sa.Column("client_id", sa.String(63), nullable=False),
        sa.Column("rule", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("evidence", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("refused_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("refusal_id", name="pk_quarantine"),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.task_id"], name="fk_quarantine_task_id_tasks"),
        sa.ForeignKeyConstraint(
            ["run_id", "round_number"],
            ["rounds.run_id", "rounds.round_number"],
            name="fk_quarantine_run_id_rounds",
        ),
        sa.UniqueConstraint("task_id", name="uq_quarantine_task_id"),
    )
    op.create_index("ix_quarantine_run_id_client_id", "quarantine", ["run_id", "client_id"])
