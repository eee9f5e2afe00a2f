"""Who did what, and how much each token may use."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("seq", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("time", sa.Float(53), nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_audit_subject", "audit", ["subject"])
    op.add_column("tokens", sa.Column("max_jobs", sa.Integer()))
    op.add_column("tokens", sa.Column("max_gpus", sa.Float(53)))


def downgrade() -> None:
    op.drop_table("audit")
    for column in ("max_jobs", "max_gpus"):
        op.drop_column("tokens", column)
