"""Where a reader stands in the Results of a batch: a cursor, opaque to clients and printable."""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error
from dataclasses import dataclass
from typing import NamedTuple

from batchmill.spec import errors

_TEXT = re.compile(r"(batch_[0-9a-f]{46})\.([0-9]{1,18})\.([0-9]{1,10})\.([0-9]{1,10})\.([0-9]{1,10})\.(|output|error)")
_MOST = 2**31 - 1  # of lines, of Slices, and of group commits
_LONGEST = 256  # characters


class Position(NamedTuple):
    """A place between two Results.

    `rank` is the number of Results before it (`ledger/order.py`). The others say where to look for it while the batch
    runs: the Segment of `seq` and `slice` begins at the rank `base`, which is `rank` or less. Of a batch whose order
    nobody kept `file` is one of its files (`output` first, then `error`), and `rank` an offset in it, in bytes.
    """

    rank: int = 0
    seq: int = 0
    slice: int = 0
    base: int = 0
    file: str = ""


START = Position()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """A place in a batch's Results, and of which batch: those of a batch and its retries can be read as one."""

    batch_id: str
    position: Position = START

    def text(self) -> str:
        """Return it as a client gets it."""
        at = self.position
        plain = f"{self.batch_id}.{at.rank}.{at.seq}.{at.slice}.{at.base}.{at.file}"
        return urlsafe_b64encode(plain.encode()).decode().rstrip("=")


def parse_cursor(text: str) -> Cursor:
    """Return the cursor that a client has sent.

    Raises:
        ApiError: it is none of ours.
    """
    try:
        plain = urlsafe_b64decode(text[:_LONGEST] + "=" * (-len(text) % 4)).decode()
    except (Error, ValueError):
        plain = ""
    found = _TEXT.fullmatch(plain)
    if found is not None and len(text) <= _LONGEST:
        rank, seq, slice_, base = map(int, found.group(2, 3, 4, 5))
        position = Position(rank, seq, slice_, base, found[6])
        if max(seq, slice_) <= _MOST and (position.file or base <= rank <= _MOST):
            return Cursor(batch_id=found[1], position=position)
    raise errors.invalid_value("after", "'after' must be a cursor that an answer of this route named.")
