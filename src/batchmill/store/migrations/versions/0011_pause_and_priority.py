"""Batches that are paused, and which of an organisation's come first."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Add the columns; a batch that is there goes on, and none comes before another."""
    op.add_column("batch", sa.Column("paused_at", sa.BigInteger(), nullable=True))
    op.add_column("batch", sa.Column("priority", sa.Integer(), server_default="0", nullable=False))
