"""The tables of what organisations own, with the database's own last walls.

No row stands for a single line of a file: a million-line batch is one batch row, some four thousand Slices and its
Segments. Every row carries its organisation. Times with `_at` are Unix seconds of the wall clock; `lease_until` is on
the lease clock (`database.Transaction.lease_now`).
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
)

from batchmill.spec.states import Status
from batchmill.store.tables.schema import metadata


def _organisation() -> Column[str]:
    return Column("organisation_id", String, ForeignKey("organisation.id"), nullable=False)


organisation = Table(
    "organisation",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("created_at", BigInteger, nullable=False),
    # What it may use; null is what the server allows everyone.
    Column("max_files", BigInteger),
    Column("max_bytes", BigInteger),
    Column("models", Text),  # JSON
    Column("requests_per_minute", BigInteger),
    Column("weight", BigInteger),  # its share beside others; null is 1
    # Its budgets; null is none.
    Column("tokens_per_day", BigInteger),
    Column("enqueued_tokens", BigInteger),  # of each model
    Column("batch_cost", String),  # a decimal number, exact, in the currency of the prices
)

api_key = Table(
    "api_key",
    metadata,
    Column("id", String, primary_key=True),
    _organisation(),
    Column("digest", String, nullable=False, unique=True),  # SHA-256 of the key; the key itself is nowhere
    Column("created_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
    Column("name", String),
    Column("hint", String),  # its first characters after the prefix, for people to know it by
    Column("scopes", String, nullable=False, server_default="read write"),
    Column("expires_at", BigInteger),
    Column("replaced_at", BigInteger),  # when another was made in its place: its time was cut short then
)

# How many calls an organisation with a limit may make now, for all API processes together (PostgreSQL).
rate = Table(
    "rate",
    metadata,
    Column("organisation_id", String, ForeignKey("organisation.id"), primary_key=True),
    Column("tokens", Float, nullable=False),
    Column("counted_at", Float, nullable=False),  # on the lease clock: when there were so many
    Column("granted", Boolean, nullable=False),  # whether the last call got one
)

# The truth about bytes. `refs` counts the rows that point at the key: a File, a live batch's input or Plan, a Segment.
blob = Table(
    "blob",
    metadata,
    Column("key", String, primary_key=True),
    Column("organisation_id", String, ForeignKey("organisation.id")),  # null: a group commit may hold several's results
    Column("state", String, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String),
    Column("refs", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    CheckConstraint("state IN ('writing', 'ready', 'doomed')", name="state"),
    CheckConstraint("refs >= 0", name="refs"),
    Index("ix_blob_state", "state", "created_at"),
)

file = Table(
    "file",
    metadata,
    Column("id", String, primary_key=True),
    _organisation(),
    Column("blob_key", String, ForeignKey("blob.key"), nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", String, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Index("ix_file_organisation", "organisation_id", "id"),
    Index("ix_file_expires", "expires_at"),
)

batch = Table(
    "batch",
    metadata,
    Column("id", String, primary_key=True),
    _organisation(),
    Column("key_id", String),  # of the key that created it; null: nobody has noted it
    Column("input_file_id", String, nullable=False),  # no foreign key: the File may be deleted while the batch lives
    Column("input_key", String),  # the batch's own reference to the bytes, until it is terminal
    Column("endpoint", String, nullable=False),
    Column("completion_window", String, nullable=False),
    Column("metadata", Text),  # JSON
    Column("output_expires_after", Integer),
    Column("status", String, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("in_progress_at", BigInteger),
    Column("finalizing_at", BigInteger),
    Column("completed_at", BigInteger),
    Column("failed_at", BigInteger),
    Column("expired_at", BigInteger),
    Column("cancelling_at", BigInteger),
    Column("cancelled_at", BigInteger),
    Column("total", Integer, nullable=False, server_default="0"),
    Column("completed", Integer, nullable=False, server_default="0"),
    Column("failed", Integer, nullable=False, server_default="0"),
    Column("open_slices", Integer, nullable=False, server_default="0"),
    Column("slice_tokens", BigInteger, nullable=False, server_default="1"),  # of a Slice, by estimate, on average
    Column("seq", Integer, nullable=False, server_default="0"),  # orders the Segments
    *(
        Column(f"{kind}_tokens", BigInteger, nullable=False, server_default="0")
        for kind in ("input", "cached", "output", "reasoning")
    ),
    Column("retries", BigInteger, nullable=False, server_default="0"),  # sends of lines beyond their first
    Column("model", String),
    Column("errors", Text),  # JSON
    Column("plan_key", String),
    Column("output_file_id", String),
    Column("error_file_id", String),
    Column("order_key", String),  # where each Result is in these two, by rank (`ledger/order.py`), while one is there
    Column("parent_id", String),  # the batch whose failed lines it retries; that is kept for ever, as every batch is
    Column("retry_group", String),  # which of that batch's failed lines it has (`spec/family.py`)
    Column("owner", String),
    Column("epoch", Integer, nullable=False, server_default="0"),
    Column("lease_until", Float),
    Column("crashes", Integer, nullable=False, server_default="0"),  # validatings or finalizings that failed in a row
    Column("retry_at", Float),  # on the lease clock: after a failure the batch is left alone until then
    Column("waiting", Text),  # why it does not move on, in words for its owner; null while it moves
    Column("waiting_since", BigInteger),
    Column("paused_at", BigInteger),  # since when no line is sent; null while lines are
    Column("priority", Integer, nullable=False, server_default="0"),  # higher goes first, within the organisation
    # How fast it goes (`schedule/forecast.py`): sums that fade with each group commit.
    *(Column(f"recent_{what}", Float, nullable=False, server_default="0") for what in ("lines", "tokens", "seconds")),
    *(Column(f"recent_{what}", Float, nullable=False, server_default="0") for what in ("prompt", "completion")),
    Column("counted_at", Float),  # on the lease clock: the last commit; null where the time since means nothing
    CheckConstraint(f"status IN ({', '.join(repr(s.value) for s in Status)})", name="status"),
    CheckConstraint("completed + failed <= total", name="counts"),
    CheckConstraint("open_slices >= 0", name="open_slices"),
    Index("ix_batch_organisation", "organisation_id", "id"),
    Index("ix_batch_listed", "organisation_id", "status", "id"),
    Index("ix_batch_status", "status", "expires_at"),
    Index("ix_batch_owner", "owner"),
)
# What still has something to let go of: without it every sweep would look at all batches that ever were.
_uncleared = batch.c.input_key.is_not(None)
Index("ix_batch_uncleared", batch.c.status, sqlite_where=_uncleared, postgresql_where=_uncleared)
_failed = batch.c.error_file_id.is_not(None)
Index("ix_batch_error_file", batch.c.error_file_id, sqlite_where=_failed, postgresql_where=_failed)
_ordered, _child = batch.c.order_key.is_not(None), batch.c.parent_id.is_not(None)
Index("ix_batch_order_key", batch.c.order_key, sqlite_where=_ordered, postgresql_where=_ordered)
Index("ix_batch_parent_id", batch.c.parent_id, sqlite_where=_child, postgresql_where=_child)

# What a batch of several models used of each; one of a single model has it all in its own row.
batch_usage = Table(
    "batch_usage",
    metadata,
    Column("batch_id", String, ForeignKey("batch.id"), nullable=False),
    Column("model", String, nullable=False),
    _organisation(),
    *(Column(f"{kind}_tokens", BigInteger, nullable=False) for kind in ("input", "cached", "output")),
    PrimaryKeyConstraint("batch_id", "model"),
)

slice_ = Table(
    "slice",
    metadata,
    Column("batch_id", String, ForeignKey("batch.id"), nullable=False),
    Column("ordinal", Integer, nullable=False),
    _organisation(),
    Column("model", String, nullable=False),
    Column("first", Integer, nullable=False),  # its first record in the Plan
    Column("lines", Integer, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("tokens", BigInteger),  # of its lines, by estimate; null: nobody has noted it
    Column("done", LargeBinary, nullable=False),  # a bit a line, least significant first
    Column("open", Boolean, nullable=False),
    Column("owner", String),
    Column("epoch", Integer, nullable=False, server_default="0"),
    Column("lease_until", Float),
    Column("crashes", Integer, nullable=False, server_default="0"),  # owners that died since the last commit
    Column("alone", Integer),  # the line that its owner sends with nothing else in flight, by its place in the Slice
    Column("alone_epoch", Integer),  # of the claim under which it was sent so: later owners may die before they send it
    Column("alone_crashes", Integer, nullable=False, server_default="0"),  # owners that died over that line
    Column("sent", LargeBinary),  # a bit a line that may have been sent; null where that is not asked for
    PrimaryKeyConstraint("batch_id", "ordinal"),
    Index("ix_slice_open", "batch_id", "open", "ordinal"),  # a claim takes the first open one
    Index("ix_slice_owner", "owner"),
)

segment = Table(
    "segment",
    metadata,
    Column("batch_id", String, ForeignKey("batch.id"), nullable=False),
    Column("slice", Integer, nullable=False),
    Column("seq", Integer, nullable=False),
    _organisation(),
    Column("blob_key", String, ForeignKey("blob.key"), nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("lines", Integer, nullable=False),
    Column("crc32", BigInteger, nullable=False),
    PrimaryKeyConstraint("batch_id", "slice", "seq"),
    Index("ix_segment_blob", "blob_key"),
    Index("ix_segment_order", "batch_id", "seq", "slice"),  # the order of a running batch's Results
)

# What was used in a day of UTC. The rows are the busiest of all: whoever writes several does so in the order of their
# keys, and last in the transaction.
usage_day = Table(
    "usage_day",
    metadata,
    _organisation(),
    Column("day", Integer, nullable=False),  # days since 1970-01-01
    Column("key_id", String, nullable=False),  # of the key that created the batch; empty: nobody has noted it
    Column("model", String, nullable=False),
    Column("requests", BigInteger, nullable=False),  # that have a result
    Column("failed", BigInteger, nullable=False),  # of those
    *(Column(f"{kind}_tokens", BigInteger, nullable=False) for kind in ("input", "cached", "output", "reasoning")),
    PrimaryKeyConstraint("organisation_id", "day", "key_id", "model"),
)

# What a batch's failed lines have in common (`spec/groups.py`); at most 64 a batch, and what nobody answered.
error_group = Table(
    "error_group",
    metadata,
    Column("batch_id", String, ForeignKey("batch.id"), nullable=False),
    Column("id", String, nullable=False),
    _organisation(),
    Column("status", Integer),
    Column("code", Text),
    Column("message", Text, nullable=False),
    Column("example", Text),  # the whole message of one of them; null: nobody has noted it, or its File has gone
    Column("lines", Integer, nullable=False),
    Column("custom_ids", Text, nullable=False),  # JSON: of the first of them
    PrimaryKeyConstraint("batch_id", "id"),
)

# What each backend has done of a batch.
batch_share = Table(
    "batch_share",
    metadata,
    Column("batch_id", String, ForeignKey("batch.id"), nullable=False),
    Column("backend", String, nullable=False),
    _organisation(),
    Column("lines", Integer, nullable=False),
    *(Column(f"{kind}_tokens", BigInteger, nullable=False) for kind in ("prompt", "completion")),
    PrimaryKeyConstraint("batch_id", "backend"),
)

# What a POST answered, for the client whose copy of the answer is lost (contract, choice 9). The status is 200: no
# other answer is kept. Without an Idempotency-Key a record goes as soon as its answer is known to have arrived.
replay = Table(
    "replay",
    metadata,
    Column("id", String, primary_key=True),  # sorts by creation; the fence of a call that is still running
    _organisation(),
    Column("caller", String, nullable=False),  # SHA-256 of the API key that asked
    Column("route", String, nullable=False),
    Column("key_digest", String),  # SHA-256 of the Idempotency-Key; null without one
    Column("fingerprint", String),  # SHA-256 of what was asked for
    Column("made_id", String),  # the File or the batch
    Column("answer", LargeBinary),  # the body; null while the first call is running
    Column("served", Integer, nullable=False),  # the retry count of the call that it was last the answer to
    Column("expires_at", BigInteger, nullable=False),
    Column("lease_until", Float),  # while it is running
    CheckConstraint("answer IS NOT NULL OR (key_digest IS NOT NULL AND lease_until IS NOT NULL)", name="running"),
    Index("ix_replay_key", "organisation_id", "route", "key_digest", unique=True),
    Index("ix_replay_fingerprint", "fingerprint", "served", "id"),
    Index("ix_replay_made", "made_id"),
    Index("ix_replay_expires", "expires_at"),
)

# Where an organisation wants the ends of its batches told, and the log of that.
webhook = Table(
    "webhook",
    metadata,
    Column("id", String, primary_key=True),
    _organisation(),
    Column("batch_id", String),  # null: of all its batches
    Column("url", Text, nullable=False),
    Column("events", Text, nullable=False),  # with spaces between
    Column("secret", String, nullable=False),  # events are signed with it, so it is kept as it is
    Column("created_at", BigInteger, nullable=False),
    Index("ix_webhook_organisation", "organisation_id", "id"),
    Index("ix_webhook_batch", "organisation_id", "batch_id"),
)

delivery = Table(
    "delivery",
    metadata,
    Column("id", String, primary_key=True),
    Column("webhook_id", String, nullable=False),  # no foreign key: its end must not hold up a batch's
    Column("event_id", String, nullable=False),  # the same for every webhook, and at every try
    Column("event", String, nullable=False),
    Column("batch_id", String, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("attempts", Integer, nullable=False),  # tries begun
    Column("status", String, nullable=False),
    Column("last_status_code", Integer),
    Column("last_error", Text),
    Column("next_at", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("delivered_at", BigInteger),
    Column("lease_until", Float),  # while it is being tried, and the fence of that try
    Index("ix_delivery_due", "status", "next_at"),
    Index("ix_delivery_webhook", "webhook_id", "id"),
)
