"""Lays down a batch's Plan while its lines are read: piece by piece in the order that pays, cut into Slices.

A piece is so many consecutive lines of the File as can be ordered in little memory. Lines of different pieces do not
pass each other, so what has to be put back into the File's order at the end is never more than a piece. Within one, the
lines of each model stand together: a Slice is of one model, and a File that alternates would make one of each line.

Where it is dear to read lines from here and there, the lines of a piece that has another order than the File are copied
in it. Where there is no room for that, the piece keeps the File's order.
"""

import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from zlib import crc32

from batchmill.schedule.order import KV_TOKENS, NOTHING_SHARED, Orderer, fingerprint
from batchmill.schedule.plan import RECORD_BYTES, Cut, Record, cut, is_scattered, lay_out, pack, unpack

PIECE = 1 << 16  # lines: about 12 MB while they are ordered (190 bytes a line)
COPIED = 1 << 30  # bytes of the File, about: a piece that may have to be copied is no larger

Copy = Callable[[bytes], int | None]

_MARKS = struct.Struct("<II")  # the last two of a record: prefix and prefill
_KEPT = RECORD_BYTES - _MARKS.size
_AT_ONCE = 4096  # records


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordering:
    """What decides on the order of lines.

    `backends` is how many Backends there are, about, each with a cache of `kv_tokens`. `in_file_order`: the lines of a
    model are sent as they stand in the File, whatever their prompts have in common. `coalesce`: those with the same
    body stand side by side all the same.
    """

    backends: int = 1
    kv_tokens: int = KV_TOKENS
    in_file_order: bool = False
    coalesce: bool = False


class Planner:
    """Takes in the lines of one File in their order; `write` takes the bytes of the Plan, in its own.

    `copy` is given the Plan of a piece whose lines are to be copied in its order, and returns the offset of the first
    of them in the copy, in which a line end stands between each two. None: there is no room for them. Without it no
    line is copied.
    """

    def __init__(
        self,
        *,
        write: Callable[[bytes], None],
        ordering: Ordering,
        copy: Copy | None = None,
        piece: int = PIECE,
        copied: int = COPIED,
    ) -> None:
        self._write = write
        self._ordering = ordering
        self._copy = copy
        self._piece = piece
        self._copied = copied
        self._parts: dict[int, _Part] = {}
        self._begin = 0  # of this piece in the File
        self._lines = 0  # of this piece
        self._first = 0  # of the next Slice
        self._cuts: list[Cut] = []

    def add(self, record: Record, *, prompt: bytes | memoryview, output: int, body: bytes | memoryview) -> None:
        """Take in a line: what the Plan keeps of it, how its prompt begins, the tokens it may generate, its body."""
        if not self._lines:
            self._begin = record.offset
        part = self._parts.get(record.model)
        if part is None:
            part = self._parts[record.model] = _Part()
        part.records += pack(record)
        part.twins.append(crc32(body) if self._ordering.coalesce else 0)
        tokens = max(0, record.tokens - output)
        sums = NOTHING_SHARED if self._ordering.in_file_order else fingerprint(prompt)
        part.orderer.add(sums, prompt=tokens, output=output)
        self._lines += 1
        too_large = self._copy is not None and record.offset + record.length - self._begin >= self._copied
        if self._lines == self._piece or too_large:
            self._lay()

    def finish(self) -> tuple[Cut, ...]:
        """Lay down what is left, and return the Slices of the whole Plan."""
        self._lay()
        return tuple(self._cuts)

    def _lay(self) -> None:
        plan = self._planned(self._ordering)
        if self._copy is not None and is_scattered(plan):
            begin = self._copy(bytes(plan))
            if begin is None:
                plan = self._planned(replace(self._ordering, in_file_order=True, coalesce=False))
            else:
                lay_out(plan, begin)
        self._parts.clear()
        for start in range(0, len(plan), _AT_ONCE * RECORD_BYTES):
            self._write(bytes(plan[start : start + _AT_ONCE * RECORD_BYTES]))
        self._cuts += cut(unpack(plan), first=self._first)
        self._first += self._lines
        self._lines = 0

    def _planned(self, by: Ordering) -> bytearray:
        """Return the Plan of the piece."""
        plan = bytearray()
        for part in self._parts.values():
            for records in part.ordered(by):
                plan += records
        return plan


class _Part:
    """The lines of one model in a piece."""

    def __init__(self) -> None:
        self.records = bytearray()
        self.twins = array("I")
        self.orderer = Orderer()

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.twins)

    def ordered(self, by: Ordering) -> Iterator[bytes]:
        """Yield the records in the order that pays, with its marks, some thousand at once."""
        order = self.orderer.order(backends=by.backends, kv_tokens=by.kv_tokens, as_added=by.in_file_order)
        places = self._beside_twins(order.lines) if by.coalesce and any(self.twins) else range(len(self))
        for start in range(0, len(self), _AT_ONCE):
            pieces: list[bytes | bytearray] = []
            for at in places[start : start + _AT_ONCE]:
                begin = order.lines[at] * RECORD_BYTES
                pieces += (self.records[begin : begin + _KEPT], _MARKS.pack(order.prefix[at], order.prefill[at]))
            yield b"".join(pieces)

    def _beside_twins(self, lines: Sequence[int]) -> Sequence[int]:
        """Return the places of an order so that each line stands behind the first of its twins."""
        first: dict[int, int] = {}
        leads = [first.setdefault(self.twins[line] or ~line, at) for at, line in enumerate(lines)]
        return sorted(range(len(lines)), key=leads.__getitem__)
