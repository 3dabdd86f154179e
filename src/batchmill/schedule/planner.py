"""Lays down a batch's Plan while its lines are read: piece by piece in the order that pays, cut into Slices.

A piece is so many consecutive lines of the File as can be ordered in little memory. Lines of different pieces do not
pass each other, so what has to be put back into the File's order at the end is never more than a piece. Within one, the
lines of each model stand together: a Slice is of one model, and a File that alternates would make one of each line.
"""

import struct
from array import array
from collections.abc import Callable, Iterator, Sequence

from batchmill.schedule.order import Orderer
from batchmill.schedule.plan import RECORD_BYTES, Cut, Record, cut, pack, unpack

PIECE = 1 << 17  # lines: about 30 MB while they are ordered (230 bytes a line)

_MARKS = struct.Struct("<II")  # the last two of a record: prefix and prefill
_KEPT = RECORD_BYTES - _MARKS.size
_AT_ONCE = 4096  # records


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
            self._cuts += cut(self._written(part), first=self._first)
            self._first += len(part)
        self._parts.clear()
        self._lines = 0

    def _written(self, part: "_Part") -> Iterator[Record]:
        for data in part.ordered(self._backends):
            self._write(data)
            yield from unpack(data)


class _Part:
    """The lines of one model in a piece."""

    def __init__(self) -> None:
        self.records = bytearray()
        self.twins = array("I")
        self.orderer = Orderer()

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.twins)

    def ordered(self, backends: int) -> Iterator[bytes]:
        """Yield the records in the order that pays, with its marks, some thousand at once."""
        order = self.orderer.order(backends=backends)
        self.orderer = Orderer()  # it holds as much as the records
        places = self._beside_twins(order.lines) if any(self.twins) else range(len(self))
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
