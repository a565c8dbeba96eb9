"""What rounds took on devices is kept."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table; of older rounds there is nothing to put into it."""
    op.create_table(
        "reports",
        sa.Column("report_id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("round_number", sa.Integer(), nullable=False),
        sa.Column("client_id", sa.String(length=63), nullable=False),
        sa.Column("report", sa.Text(), nullable=False),
        sa.Column("received_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id", "round_number"],
            ["rounds.run_id", "rounds.round_number"],
            name=op.f("fk_reports_run_id"),
        ),
        sa.PrimaryKeyConstraint("report_id", name=op.f("pk_reports")),
        sa.UniqueConstraint(
            "run_id",
            "round_number",
            "client_id",
            name=op.f("uq_reports_run_id_round_number_client_id"),
        ),
    )
    op.create_index(op.f("ix_reports_run_id_report_id"), "reports", ["run_id", "report_id"])
    op.create_index(op.f("ix_reports_client_id_report_id"), "reports", ["client_id", "report_id"])
