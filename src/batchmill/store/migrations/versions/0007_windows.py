"""One window for each backend, shared by all workers; and backends that come and go."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the columns and the tables; nobody has said how large a window is, and no worker has told its part."""
    op.add_column("backend", sa.Column("leader", sa.String(), nullable=True))
    for name in ("total", "round"):
        op.add_column("backend", sa.Column(name, sa.BigInteger(), server_default="0", nullable=False))
    counts = ("in_flight", "wanted", "held", "round", "pressed", "answers")
    sums = ("elapsed", "area", "work", "seconds", "arrived")
    op.create_table(
        "lane",
        sa.Column("worker_id", sa.String(), nullable=False),
        sa.Column("backend", sa.String(), nullable=False),
        sa.Column("well", sa.Boolean(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        *(sa.Column(name, sa.BigInteger(), server_default="0", nullable=False) for name in counts),
        *(sa.Column(name, sa.Float(), server_default="0", nullable=False) for name in sums),
        sa.PrimaryKeyConstraint("worker_id", "backend", name="pk_lane"),
    )
    op.create_index("ix_lane_backend", "lane", ["backend"])
    op.create_table(
        "roster",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("url", sa.String(), nullable=True),
        sa.Column("models", sa.Text(), nullable=False),
        sa.Column("key_env", sa.String(), nullable=True),
        sa.Column("window", sa.BigInteger(), nullable=True),
        sa.Column("timeout", sa.Float(), nullable=True),
        sa.Column("draining", sa.Boolean(), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_roster"),
    )
