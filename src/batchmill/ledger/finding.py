"""What an audit finds: values that name the thing and say what is wrong with it."""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What is wrong; all but the last four are damage."""

    DATABASE = "database"  # SQLite itself says so, or rows refer to rows that are not there
    BYTES = "bytes"  # they are gone, or not those that were written
    REFS = "refs"  # `refs` is not the number of rows that point at the bytes
    ORPHAN = "orphan"  # bytes without a row, older than any writing
    SEGMENT = "segment"  # Results that cannot be read back, doubled, or not those of the bitmap
    COUNTS = "counts"  # counts that are not the lines
    SLICES = "slices"  # the Plan is not covered exactly
    STATE = "state"  # a batch that no way through the machine leads to
    LINES = "lines"  # result files that are not one line per Request in the input's order
    UNFINISHED = "unfinished"  # bytes on their way, here or away
    YOUNG = "young"  # bytes without a row that may get theirs
    LEASE = "lease"  # held by a worker that is not there: the next one to start takes it
    STUCK = "stuck"  # moving it on failed again and again


NOTES = frozenset({Kind.UNFINISHED, Kind.YOUNG, Kind.LEASE, Kind.STUCK})


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing found: `what` is a key or an id, `detail` a sentence."""

    kind: Kind
    what: str
    detail: str

    @property
    def is_damage(self) -> bool:
        """Whether it is more than a note."""
        return self.kind not in NOTES


@dataclass(slots=True, kw_only=True)
class Tally:
    """How much an audit has looked at."""

    rows: int = 0
    blobs: int = 0
    bytes: int = 0
    lines: int = 0
