"""How fast a batch goes: sums of what was counted lately, and when the last of it was."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the columns; of a batch that is there nothing is known yet."""
    for name in ("recent_lines", "recent_tokens", "recent_seconds"):
        op.add_column("batch", sa.Column(name, sa.Float(), server_default="0", nullable=False))
    op.add_column("batch", sa.Column("counted_at", sa.Float(), nullable=True))
