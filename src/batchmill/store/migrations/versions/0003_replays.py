"""What a POST answered, for the client whose copy of the answer is lost."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "replay",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("organisation_id", sa.String(), nullable=False),
        sa.Column("caller", sa.String(), nullable=False),
        sa.Column("route", sa.String(), nullable=False),
        sa.Column("key_digest", sa.String(), nullable=True),
        sa.Column("fingerprint", sa.String(), nullable=True),
        sa.Column("made_id", sa.String(), nullable=True),
        sa.Column("answer", sa.LargeBinary(), nullable=True),
        sa.Column("served", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("lease_until", sa.Float(), nullable=True),
        sa.CheckConstraint(
            "answer IS NOT NULL OR (key_digest IS NOT NULL AND lease_until IS NOT NULL)",
            name=op.f("ck_replay_running"),
        ),
        sa.ForeignKeyConstraint(["organisation_id"], ["organisation.id"], name=op.f("fk_replay_organisation_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_replay")),
    )
    op.create_index("ix_replay_key", "replay", ["organisation_id", "route", "key_digest"], unique=True)
    op.create_index("ix_replay_fingerprint", "replay", ["fingerprint", "served", "id"])
    op.create_index("ix_replay_made", "replay", ["made_id"])
    op.create_index("ix_replay_expires", "replay", ["expires_at"])
