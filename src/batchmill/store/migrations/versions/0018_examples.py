"""A whole message of each error group, for as long as the error file has it; and an index of batches by status."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    """Add both, and what finds the batch of an error file; of groups that are there nobody knows an example."""
    op.add_column("error_group", sa.Column("example", sa.Text(), nullable=True))
    op.create_index("ix_batch_listed", "batch", ["organisation_id", "status", "id"])
    has = sa.text("error_file_id IS NOT NULL")
    op.create_index("ix_batch_error_file", "batch", ["error_file_id"], sqlite_where=has, postgresql_where=has)
