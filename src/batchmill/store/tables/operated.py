"""The tables of what the operator runs: models, backends, workers. No organisation owns them."""

from sqlalchemy import BigInteger, Boolean, Column, Float, Index, PrimaryKeyConstraint, String, Table, Text

from batchmill.store.tables.schema import metadata

model = Table(
    "model",
    metadata,
    Column("name", String, primary_key=True),
    Column("created_at", BigInteger, nullable=False),
)

backend = Table(
    "backend",
    metadata,
    Column("name", String, primary_key=True),
    Column("well", Boolean, nullable=False),
    Column("reason", Text),
    Column("since", BigInteger, nullable=False),
    # The window that all workers share (`schedule.share`); its leader leads as long as the worker's lease holds.
    Column("leader", String),
    Column("total", BigInteger, nullable=False, server_default="0"),  # 0: nobody has said it
    Column("round", BigInteger, nullable=False, server_default="0"),
    Column("models", Text),  # that it told last, one a line; null: none yet
)

# What one worker has to do with one backend; it counts while the worker's lease holds.
lane = Table(
    "lane",
    metadata,
    Column("worker_id", String, nullable=False),
    Column("backend", String, nullable=False),
    Column("well", Boolean),  # null: it has not been asked
    Column("reason", Text),
    Column("in_flight", BigInteger, nullable=False, server_default="0"),
    Column("wanted", BigInteger, nullable=False, server_default="0"),
    Column("held", BigInteger, nullable=False, server_default="0"),  # of the total
    Column("round", BigInteger, nullable=False, server_default="0"),  # that the measure is of
    Column("pressed", BigInteger, nullable=False, server_default="0"),  # refusals for pressure (429)
    Column("answers", BigInteger, nullable=False, server_default="0"),  # the measure, with what follows
    *(Column(n, Float, nullable=False, server_default="0") for n in ("elapsed", "area", "work", "seconds", "arrived")),
    PrimaryKeyConstraint("worker_id", "backend"),
    Index("ix_lane_backend", "backend"),
)

# What the operator has said of backends since the workers started: those added, and those that are to get no lines.
roster = Table(
    "roster",
    metadata,
    Column("name", String, primary_key=True),
    Column("url", String),  # null: one of the settings' own
    Column("models", Text, nullable=False),  # one a line; none: it tells them itself
    Column("key_env", String),  # the name of the variable that holds its key, never the key
    Column("window", BigInteger),
    Column("timeout", Float),
    Column("draining", Boolean, nullable=False),
    Column("since", BigInteger, nullable=False),
)

worker = Table(
    "worker",
    metadata,
    Column("id", String, primary_key=True),
    Column("started_at", BigInteger, nullable=False),
    Column("lease_until", Float, nullable=False),
    Column("place", String),  # its machine and process, for people
)

# Names of transactions of late, each written by the transaction itself (`store/postgres.py`); none on SQLite.
transaction_name = Table(
    "transaction_name",
    metadata,
    Column("name", String, primary_key=True),
    Column("begun_at", Float, nullable=False),  # on the lease clock
)
