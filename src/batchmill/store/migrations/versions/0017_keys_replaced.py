"""Which keys were replaced, and an index of a batch's own webhooks."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    """Add both; of a key that was replaced before nobody knows it, so it may be replaced once more."""
    op.add_column("api_key", sa.Column("replaced_at", sa.BigInteger(), nullable=True))
    op.create_index("ix_webhook_batch", "webhook", ["organisation_id", "batch_id"])
