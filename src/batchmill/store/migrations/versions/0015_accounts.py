"""What was used by whom in which day, and budgets."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Add them; who created the batches that are there is not known, and nobody has a budget."""
    op.add_column("organisation", sa.Column("tokens_per_day", sa.BigInteger(), nullable=True))
    op.add_column("organisation", sa.Column("enqueued_tokens", sa.BigInteger(), nullable=True))
    op.add_column("organisation", sa.Column("batch_cost", sa.String(), nullable=True))
    op.add_column("batch", sa.Column("key_id", sa.String(), nullable=True))
    op.add_column("slice", sa.Column("tokens", sa.BigInteger(), nullable=True))
    op.add_column("backend", sa.Column("models", sa.Text(), nullable=True))
    op.create_table(
        "usage_day",
        sa.Column("organisation_id", sa.String(), nullable=False),
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("failed", sa.BigInteger(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["organisation_id"], ["organisation.id"], name="fk_usage_day_organisation_id"),
        sa.PrimaryKeyConstraint("organisation_id", "day", "key_id", "model", name="pk_usage_day"),
    )
