"""What the files of a job were like when its present attempt began."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("before", sa.JSON()))


def downgrade() -> None:
    op.drop_column("jobs", "before")
