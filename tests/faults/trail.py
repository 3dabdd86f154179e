"""The trail that rows leave: test-only triggers write down each status, claim, done bitmap and count as it changes.

They are part of the transaction that changes the row, so what a kill took back has left no trail.
"""

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from faults.ground import Ground, Row

T = TypeVar("T")

_NOW = "(julianday('now') - 2440587.5) * 86400.0"  # Unix seconds, to the millisecond
_STAMPS = (
    "in_progress_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
    "created_at",
)
_RESTAMPED = " OR ".join(f"(OLD.{stamp} IS NOT NULL AND NEW.{stamp} IS NOT OLD.{stamp})" for stamp in _STAMPS)
_SQLITE = f"""
CREATE TABLE trail_status (id INTEGER PRIMARY KEY, at REAL, batch TEXT, old TEXT, new TEXT);
CREATE TRIGGER trail_created AFTER INSERT ON batch BEGIN
  INSERT INTO trail_status (at, batch, old, new) VALUES ({_NOW}, NEW.id, NULL, NEW.status);
END;
CREATE TRIGGER trail_moved AFTER UPDATE OF status ON batch BEGIN
  INSERT INTO trail_status (at, batch, old, new) VALUES ({_NOW}, NEW.id, OLD.status, NEW.status);
END;

CREATE TABLE trail_restamped (batch TEXT);
CREATE TRIGGER trail_restamp AFTER UPDATE OF {", ".join(_STAMPS)} ON batch
WHEN {_RESTAMPED} BEGIN
  INSERT INTO trail_restamped VALUES (NEW.id);
END;

CREATE TABLE trail_claim (id INTEGER PRIMARY KEY, at REAL, batch TEXT, slice INTEGER, first INTEGER, lines INTEGER,
  epoch INTEGER, owner TEXT, taken_from TEXT, done BLOB);
CREATE TRIGGER trail_claimed AFTER UPDATE OF epoch ON slice BEGIN
  INSERT INTO trail_claim (at, batch, slice, first, lines, epoch, owner, taken_from, done) VALUES
    ({_NOW}, NEW.batch_id, NEW.ordinal, NEW.first, NEW.lines, NEW.epoch, NEW.owner, OLD.owner, NEW.done);
END;

CREATE TABLE trail_lease (at REAL, batch TEXT, owner TEXT, taken_from TEXT);
CREATE TRIGGER trail_leased AFTER UPDATE OF epoch ON batch BEGIN
  INSERT INTO trail_lease VALUES ({_NOW}, NEW.id, NEW.owner, OLD.owner);
END;

CREATE TABLE trail_done (id INTEGER PRIMARY KEY, at REAL, batch TEXT, slice INTEGER, first INTEGER, epoch INTEGER,
  old BLOB, new BLOB);
CREATE TRIGGER trail_recorded AFTER UPDATE OF done ON slice BEGIN
  INSERT INTO trail_done (at, batch, slice, first, epoch, old, new) VALUES
    ({_NOW}, NEW.batch_id, NEW.ordinal, NEW.first, NEW.epoch, OLD.done, NEW.done);
END;

-- `entries` is how far `trail_done` had come: writers follow each other. Where they do not, `lines` are counted.
CREATE TABLE trail_counts (id INTEGER PRIMARY KEY, batch TEXT, status TEXT, total INTEGER, completed INTEGER,
  failed INTEGER, entries INTEGER, lines INTEGER);
CREATE TRIGGER trail_counted AFTER UPDATE OF completed, failed ON batch BEGIN
  INSERT INTO trail_counts (batch, status, total, completed, failed, entries) VALUES
    (NEW.id, NEW.status, NEW.total, NEW.completed, NEW.failed, (SELECT coalesce(max(id), 0) FROM trail_done));
END;

-- A short window is ours, not the API's, which knows minutes at least: `metadata.window` is its length in seconds.
CREATE TRIGGER short_window AFTER INSERT ON batch WHEN json_extract(NEW.metadata, '$.window') IS NOT NULL BEGIN
  UPDATE batch SET expires_at = created_at + CAST(json_extract(NEW.metadata, '$.window') AS INTEGER)
  WHERE id = NEW.id;
END;
"""  # noqa: S608 - made of our own words

_CLOCK = "extract(epoch FROM clock_timestamp())::float8"


_CHANGED = _RESTAMPED.replace("IS NOT OLD", "IS DISTINCT FROM OLD")


def _trigger(name: str, when: str, statement: str) -> str:
    """Return a trigger of PostgreSQL: a function first, then who calls it."""
    return f"""CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
      INSERT INTO {statement};
      RETURN NEW;
    END $$;
    CREATE TRIGGER {name} {when} EXECUTE FUNCTION {name}();"""


_POSTGRESQL = "\n".join(
    (
        "CREATE TABLE trail_status (id BIGSERIAL PRIMARY KEY, at FLOAT8, batch TEXT, old TEXT, new TEXT);",
        _trigger(
            "trail_created",
            "AFTER INSERT ON batch FOR EACH ROW",
            f"trail_status (at, batch, old, new) VALUES ({_CLOCK}, NEW.id, NULL, NEW.status)",
        ),
        _trigger(
            "trail_moved",
            "AFTER UPDATE OF status ON batch FOR EACH ROW WHEN (OLD.status != NEW.status)",
            f"trail_status (at, batch, old, new) VALUES ({_CLOCK}, NEW.id, OLD.status, NEW.status)",
        ),
        "CREATE TABLE trail_restamped (batch TEXT);",
        _trigger(
            "trail_restamp",
            f"AFTER UPDATE OF {', '.join(_STAMPS)} ON batch FOR EACH ROW WHEN ({_CHANGED})",
            "trail_restamped VALUES (NEW.id)",
        ),
        """CREATE TABLE trail_claim (id BIGSERIAL PRIMARY KEY, at FLOAT8, batch TEXT, slice INTEGER, first INTEGER,
             lines INTEGER, epoch INTEGER, owner TEXT, taken_from TEXT, done BYTEA);""",
        _trigger(
            "trail_claimed",
            "AFTER UPDATE OF epoch ON slice FOR EACH ROW",
            f"""trail_claim (at, batch, slice, first, lines, epoch, owner, taken_from, done) VALUES
             ({_CLOCK}, NEW.batch_id, NEW.ordinal, NEW.first, NEW.lines, NEW.epoch, NEW.owner, OLD.owner, NEW.done)""",
        ),
        "CREATE TABLE trail_lease (at FLOAT8, batch TEXT, owner TEXT, taken_from TEXT);",
        _trigger(
            "trail_leased",
            "AFTER UPDATE OF epoch ON batch FOR EACH ROW",
            f"trail_lease VALUES ({_CLOCK}, NEW.id, NEW.owner, OLD.owner)",
        ),
        """CREATE TABLE trail_done (id BIGSERIAL PRIMARY KEY, at FLOAT8, batch TEXT, slice INTEGER, first INTEGER,
             epoch INTEGER, old BYTEA, new BYTEA);
           CREATE INDEX trail_done_batch ON trail_done (batch);""",
        _trigger(
            "trail_recorded",
            "AFTER UPDATE OF done ON slice FOR EACH ROW",
            f"""trail_done (at, batch, slice, first, epoch, old, new) VALUES
             ({_CLOCK}, NEW.batch_id, NEW.ordinal, NEW.first, NEW.epoch, OLD.done, NEW.done)""",
        ),
        """CREATE TABLE trail_counts (id BIGSERIAL PRIMARY KEY, batch TEXT, status TEXT, total INTEGER,
             completed INTEGER, failed INTEGER, entries INTEGER, lines INTEGER);""",
        # The row of the batch is locked by now: whoever has counted before has committed, and is seen.
        _trigger(
            "trail_counted",
            "AFTER UPDATE OF completed, failed ON batch FOR EACH ROW",
            """trail_counts (batch, status, total, completed, failed, lines) VALUES
             (NEW.id, NEW.status, NEW.total, NEW.completed, NEW.failed,
              (SELECT coalesce(sum(bit_count(t.new) - bit_count(t.old)), 0)
               FROM trail_done t WHERE t.batch = NEW.id))""",
        ),
        """CREATE FUNCTION short_window() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             NEW.expires_at := NEW.created_at + (NEW.metadata::json ->> 'window')::integer;
             RETURN NEW;
           END $$;
           CREATE TRIGGER short_window BEFORE INSERT ON batch FOR EACH ROW
             WHEN (NEW.metadata::json ->> 'window' IS NOT NULL) EXECUTE FUNCTION short_window();""",
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A batch's status changed."""

    at: float
    batch: str
    old: str | None
    new: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A Slice got another owner; `done` is its bitmap at that moment, `taken_from` who had held it until then."""

    at: float
    batch: str
    slice: int
    first: int
    lines: int
    epoch: int
    owner: str
    taken_from: str | None
    done: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A Slice's bitmap changed."""

    at: float
    batch: str
    slice: int
    first: int
    epoch: int
    old: bytes
    new: bytes

    def lines(self) -> Sequence[int]:
        """Return the lines of the batch, from 0, that are newly done."""
        return [self.first + i for i in bits(self.new) - bits(self.old)]


class Counted(NamedTuple):
    """A batch's counts were written; by then so many of its lines were recorded in its bitmaps."""

    batch: str
    status: str
    total: int
    completed: int
    failed: int
    recorded: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trail:
    """All of it, in the order of the commits; times on CLOCK_MONOTONIC."""

    moves: Sequence[Move]
    claims: Sequence[Claimed]
    recorded: Sequence[Recorded]
    counts: Sequence[Counted]
    restamped: Sequence[str]  # batches of which a timestamp was written twice
    batches_taken_over: int

    @property
    def slices_taken_over(self) -> int:
        """How often a Slice was taken from an owner that had not let go of it."""
        return sum(claim.taken_from not in (None, claim.owner) for claim in self.claims)


def bits(bitmap: bytes) -> set[int]:
    """Return which bits are set."""
    return {at * 8 + bit for at, byte in enumerate(bitmap) for bit in range(8) if byte >> bit & 1}


def lay_trail(ground: Ground) -> None:
    """Add the triggers to a migrated database."""
    ground.script(_POSTGRESQL if ground.has_many_writers else _SQLITE)


def read_trail(ground: Ground) -> Trail:
    """Return what has been laid down so far."""
    shift = time.monotonic() - time.time()
    with closing(ground.rows()) as connection:

        def rows(kind: type[T], table: str) -> list[T]:
            names = kind.__slots__[1:]
            found = connection.all(f"SELECT at, {', '.join(names)} FROM {table} ORDER BY id")  # noqa: S608 - our own words
            return [kind(at=row[0] + shift, **dict(zip(names, row[1:], strict=True))) for row in found]

        recorded = rows(Recorded, "trail_done")
        counts = connection.all(
            "SELECT batch, status, total, completed, failed, lines, entries FROM trail_counts ORDER BY id"
        )
        taken = "SELECT count(*) FROM trail_lease WHERE taken_from IS NOT NULL AND taken_from IS DISTINCT FROM owner"
        return Trail(
            moves=rows(Move, "trail_status"),
            claims=rows(Claimed, "trail_claim"),
            recorded=recorded,
            counts=_counts(counts, recorded),
            restamped=[batch for (batch,) in connection.all("SELECT batch FROM trail_restamped")],
            batches_taken_over=connection.all(taken)[0][0],
        )


def _counts(rows: Sequence[Row], recorded: Sequence[Recorded]) -> list[Counted]:
    """Count the lines where the trail has not."""
    found: list[Counted] = []
    lines: Counter[str] = Counter()
    at = 0
    for *of, count, entries in rows:
        if count is None:
            for entry in recorded[at:entries]:
                lines[entry.batch] += len(entry.lines())
            at = max(at, entries)
        found.append(Counted(*of, lines[of[0]] if count is None else count))
    return found
