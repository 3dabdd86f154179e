"""What became of a batch's lines so far: retries, tokens by kind, errors by cause, shares of the backends."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Add the columns and tables; of what was done before, nobody knows how it divides."""
    op.add_column("batch", sa.Column("retries", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("batch", sa.Column("recent_prompt", sa.Float(), server_default="0", nullable=False))
    op.add_column("batch", sa.Column("recent_completion", sa.Float(), server_default="0", nullable=False))
    op.create_table(
        "error_group",
        sa.Column("batch_id", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("organisation_id", sa.String(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("code", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("lines", sa.Integer(), nullable=False),
        sa.Column("custom_ids", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("batch_id", "id", name="pk_error_group"),
        sa.ForeignKeyConstraint(["batch_id"], ["batch.id"], name="fk_error_group_batch_id"),
        sa.ForeignKeyConstraint(["organisation_id"], ["organisation.id"], name="fk_error_group_organisation_id"),
    )
    op.create_table(
        "batch_share",
        sa.Column("batch_id", sa.String(), nullable=False),
        sa.Column("backend", sa.String(), nullable=False),
        sa.Column("organisation_id", sa.String(), nullable=False),
        sa.Column("lines", sa.Integer(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("batch_id", "backend", name="pk_batch_share"),
        sa.ForeignKeyConstraint(["batch_id"], ["batch.id"], name="fk_batch_share_batch_id"),
        sa.ForeignKeyConstraint(["organisation_id"], ["organisation.id"], name="fk_batch_share_organisation_id"),
    )
