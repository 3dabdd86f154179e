"""A row for each transaction of late on PostgreSQL: by it is known that it was committed."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add the table; what was begun before is known by its id alone."""
    op.create_table(
        "transaction_name",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("begun_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_transaction_name"),
    )
