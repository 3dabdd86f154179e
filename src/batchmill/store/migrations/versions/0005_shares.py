"""What a Slice of a batch costs, and how much of the whole an organisation gets beside others."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the columns; a batch that is there is taken for one whose Slices cost nothing to speak of."""
    op.add_column("batch", sa.Column("slice_tokens", sa.BigInteger(), server_default="1", nullable=False))
    op.add_column("organisation", sa.Column("weight", sa.BigInteger(), nullable=True))
