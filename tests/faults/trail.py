"""The trail that rows leave: test-only triggers write down each status, claim, done bitmap and count as it changes.

They are part of the transaction that changes the row, so what a kill took back has left no trail.
"""

import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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
_TRIGGERS = f"""
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

CREATE TABLE trail_counts (id INTEGER PRIMARY KEY, batch TEXT, status TEXT, total INTEGER, completed INTEGER,
  failed INTEGER, recorded INTEGER);
CREATE TRIGGER trail_counted AFTER UPDATE OF completed, failed ON batch BEGIN
  INSERT INTO trail_counts (batch, status, total, completed, failed, recorded) VALUES
    (NEW.id, NEW.status, NEW.total, NEW.completed, NEW.failed, (SELECT coalesce(max(id), 0) FROM trail_done));
END;

-- A short window is ours, not the API's, which knows minutes at least: `metadata.window` is its length in seconds.
CREATE TRIGGER short_window AFTER INSERT ON batch WHEN json_extract(NEW.metadata, '$.window') IS NOT NULL BEGIN
  UPDATE batch SET expires_at = created_at + CAST(json_extract(NEW.metadata, '$.window') AS INTEGER)
  WHERE id = NEW.id;
END;
"""  # noqa: S608 - made of our own words


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
    """A batch's counts were written; `recorded` bitmaps had changed by then, in the order of `Trail.recorded`."""

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


def lay_trail(database: Path) -> None:
    """Add the triggers to a migrated database."""
    with closing(sqlite3.connect(database, timeout=30)) as connection:
        connection.executescript(_TRIGGERS)


def read_trail(database: Path) -> Trail:
    """Return what has been laid down so far."""
    shift = time.monotonic() - time.time()
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:

        def rows(sql: str) -> list[tuple[Any, ...]]:
            return [(row[0] + shift, *row[1:]) for row in connection.execute(sql)]

        moves = rows("SELECT at, batch, old, new FROM trail_status ORDER BY id")
        claims = rows(
            "SELECT at, batch, slice, first, lines, epoch, owner, taken_from, done FROM trail_claim ORDER BY id"
        )
        recorded = rows("SELECT at, batch, slice, first, epoch, old, new FROM trail_done ORDER BY id")
        counts = "SELECT batch, status, total, completed, failed, recorded FROM trail_counts ORDER BY id"
        taken = "SELECT count(*) FROM trail_lease WHERE taken_from IS NOT NULL AND taken_from IS NOT owner"
        return Trail(
            moves=[Move(**dict(zip(Move.__slots__, row, strict=True))) for row in moves],
            claims=[Claimed(**dict(zip(Claimed.__slots__, row, strict=True))) for row in claims],
            recorded=[Recorded(**dict(zip(Recorded.__slots__, row, strict=True))) for row in recorded],
            counts=[Counted(*row) for row in connection.execute(counts)],
            restamped=[batch for (batch,) in connection.execute("SELECT batch FROM trail_restamped")],
            batches_taken_over=connection.execute(taken).fetchone()[0],
        )
