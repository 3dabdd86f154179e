"""Lays down a batch's Plan while its lines are read: piece by piece in the order that pays, cut into Slices.

A piece is so many consecutive lines of the File as can be ordered in little memory. Lines of different pieces do not
pass each other, so what has to be put back into the File's order at the end is never more than a piece. Within one, the
lines of each model stand together: a Slice is of one model, and a File that alternates would make one of each line.
"""

import struct
from array import array
from collections.abc import Callable, Sequence

from batchmill.schedule.order import Order, Orderer
from batchmill.schedule.plan import RECORD_BYTES, Cut, Record, cut, pack, unpack

PIECE = 1 << 17  # lines: about 35 MB while they are ordered (270 bytes a line)

_MARKS = struct.Struct("<II")  # the last two of a record: prefix and prefill
_KEPT = RECORD_BYTES - _MARKS.size


class Planner:
    """Takes in the lines of one File in their order.

    Args:
        write: Takes the bytes of the Plan, in its order.
        backends: How many there are, about: each computes a common beginning by itself.
        piece: Lines of a piece.
    """

    def __init__(self, *, write: Callable[[bytes], None], backends: int = 1, piece: int = PIECE) -> None:
        self._write = write
        self._backends = backends
        self._piece = piece
        self._parts: dict[int, _Part] = {}
        self._lines = 0  # of this piece
        self._first = 0  # of the next Slice
        self._cuts: list[Cut] = []

    def add(self, record: Record, *, sums: Sequence[int], output: int, twin: int = 0) -> None:
        """Take in a line: what the Plan keeps of it, its `fingerprint`, and the tokens that it may generate.

        Lines with the same `twin`, not 0, are to stand side by side.
        """
        part = self._parts.get(record.model)
        if part is None:
            part = self._parts[record.model] = _Part()
        part.records += pack(record)
        part.twins.append(twin)
        part.orderer.add(sums, prompt=max(0, record.tokens - output), output=output)
        self._lines += 1
        if self._lines == self._piece:
            self._lay()

    def finish(self) -> tuple[Cut, ...]:
        """Lay down what is left, and return the Slices of the whole Plan."""
        self._lay()
        return tuple(self._cuts)

    def _lay(self) -> None:
        for part in self._parts.values():
            ordered = part.ordered(self._backends)
            self._write(ordered)
            self._cuts += cut(unpack(ordered), first=self._first)
            self._first += len(ordered) // RECORD_BYTES
        self._parts.clear()
        self._lines = 0


class _Part:
    """The lines of one model in a piece."""

    def __init__(self) -> None:
        self.records = bytearray()
        self.twins = array("I")
        self.orderer = Orderer()

    def ordered(self, backends: int) -> bytes:
        """Return the records in the order that pays, with its marks."""
        order: Order = self.orderer.order(backends=backends)
        starts = array("I", (line * RECORD_BYTES for line in order.lines))
        marks = map(_MARKS.pack, order.prefix, order.prefill)
        kept = (self.records[start : start + _KEPT] for start in starts)
        records = list(map(bytes.__add__, map(bytes, kept), marks))
        if any(self.twins):
            first: dict[int, int] = {}
            places = [first.setdefault(self.twins[line] or ~line, at) for at, line in enumerate(order.lines)]
            records = [records[at] for at in sorted(range(len(records)), key=places.__getitem__)]
        return b"".join(records)
