"""What a key may do and until when, and what its organisation may use."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the columns; the keys and organisations that are there can do what they could."""
    op.add_column("api_key", sa.Column("name", sa.String(), nullable=True))
    op.add_column("api_key", sa.Column("hint", sa.String(), nullable=True))
    op.add_column("api_key", sa.Column("scopes", sa.String(), server_default="read write", nullable=False))
    op.add_column("api_key", sa.Column("expires_at", sa.BigInteger(), nullable=True))
    op.add_column("organisation", sa.Column("max_files", sa.BigInteger(), nullable=True))
    op.add_column("organisation", sa.Column("max_bytes", sa.BigInteger(), nullable=True))
    op.add_column("organisation", sa.Column("models", sa.Text(), nullable=True))
    op.add_column("organisation", sa.Column("requests_per_minute", sa.BigInteger(), nullable=True))
