"""What a batch of several models used of each, so that it can be priced."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Add the table; of batches that were counted without it nobody knows the parts."""
    op.create_table(
        "batch_usage",
        sa.Column("batch_id", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("organisation_id", sa.String(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["batch_id"], ["batch.id"], name="fk_batch_usage_batch_id"),
        sa.ForeignKeyConstraint(["organisation_id"], ["organisation.id"], name="fk_batch_usage_organisation_id"),
        sa.PrimaryKeyConstraint("batch_id", "model", name="pk_batch_usage"),
    )
