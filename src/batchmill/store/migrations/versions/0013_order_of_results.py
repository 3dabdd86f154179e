"""Results in the order in which they came, also after their Segments have gone; and batches that retry another's."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Add the columns and the indices; the results of a batch that has no `order_key` come in the files' order."""
    for name in ("order_key", "parent_id", "retry_group"):
        op.add_column("batch", sa.Column(name, sa.String(), nullable=True))
    kept, child = sa.text("order_key IS NOT NULL"), sa.text("parent_id IS NOT NULL")
    op.create_index("ix_batch_order_key", "batch", ["order_key"], sqlite_where=kept, postgresql_where=kept)
    op.create_index("ix_batch_parent_id", "batch", ["parent_id"], sqlite_where=child, postgresql_where=child)
    op.create_index("ix_segment_order", "segment", ["batch_id", "seq", "slice"])
