"""How many calls an organisation may make now, for all API processes together."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add the table; a bucket that is not there is full."""
    op.create_table(
        "rate",
        sa.Column("organisation_id", sa.String(), nullable=False),
        sa.Column("tokens", sa.Float(), nullable=False),
        sa.Column("counted_at", sa.Float(), nullable=False),
        sa.Column("granted", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["organisation_id"], ["organisation.id"], name="fk_rate_organisation_id_organisation"),
        sa.PrimaryKeyConstraint("organisation_id", name="pk_rate"),
    )
