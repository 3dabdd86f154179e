"""What is counted of crashes, which lines were sent, and why a batch waits."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns; every one has a value for the rows that are there."""
    op.add_column("slice", sa.Column("crashes", sa.Integer(), server_default="0", nullable=False))
    op.add_column("slice", sa.Column("alone", sa.Integer(), nullable=True))
    op.add_column("slice", sa.Column("alone_epoch", sa.Integer(), nullable=True))
    op.add_column("slice", sa.Column("alone_crashes", sa.Integer(), server_default="0", nullable=False))
    op.add_column("slice", sa.Column("sent", sa.LargeBinary(), nullable=True))
    op.add_column("batch", sa.Column("crashes", sa.Integer(), server_default="0", nullable=False))
    op.add_column("batch", sa.Column("retry_at", sa.Float(), nullable=True))
    op.add_column("batch", sa.Column("waiting", sa.Text(), nullable=True))
    op.add_column("batch", sa.Column("waiting_since", sa.BigInteger(), nullable=True))
