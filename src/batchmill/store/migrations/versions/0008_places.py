"""Where a worker runs: its machine and process."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add the column; of a worker that runs already nothing is known."""
    op.add_column("worker", sa.Column("place", sa.String(), nullable=True))
