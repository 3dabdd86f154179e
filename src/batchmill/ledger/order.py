"""The order in which a batch's Results were made durable, and where each of them is in the final files.

The rank of a Result is the number of Results before it in the order (`segment.seq`, `segment.slice`, place in the
Segment). `seq` is given in the transaction of a group commit, beneath the lock of the batch's row, which is held until
that transaction is over: commit n is visible before n + 1 is numbered, so that who sees n + 1 sees n, and a rank never
changes. Lines that were never answered come after all others, in the order of the input.

Segments go when a batch is final. What is left of the order is a blob: 16 bytes a line, by rank, in blocks of 256
records, each block with its checksum behind it.
"""

import mmap
import os
import struct
import sys
import zlib
from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate, compress
from operator import not_
from typing import BinaryIO, NamedTuple

from batchmill.blobs.blobs import Blobs, BlobWriter
from batchmill.store.slice import Segment

IN_MEMORY = 1 << 20  # lines whose order needs no scratch
_RECORD = struct.Struct("<QQ")  # where the line begins, above _FAILED if in the error file; its bytes
_FAILED = 1 << 63
_BLOCK = 256  # records
_CRC = struct.Struct("<I")
_RECORDS_BYTES = _BLOCK * _RECORD.size
_BLOCK_BYTES = _RECORDS_BYTES + _CRC.size
_AT_ONCE = 64  # blocks written at once


class DamagedOrder(Exception):  # noqa: N818 - it states what is so
    """The bytes of an order are not those that were written, or lead to no line."""


class Place(NamedTuple):
    """Where a Result is: in the error file if it failed, else in the output file; in bytes, with its line end."""

    failed: bool
    offset: int
    length: int


def first_ranks(segments: Sequence[Segment]) -> list[int]:
    """Return the rank of the first Result of each Segment; they are all that a batch has, in any order."""
    order = sorted(range(len(segments)), key=lambda at: (segments[at].seq, segments[at].slice))
    ranks = [0] * len(segments)
    for at, rank in zip(order, accumulate((segments[at].lines for at in order), initial=0), strict=False):
        ranks[at] = rank
    return ranks


def order_bytes(lines: int) -> int:
    """Return the size of the order of so many lines."""
    return lines * _RECORD.size + -(-lines // _BLOCK) * _CRC.size


class Order:
    """An order that is built while its lines are written, in the order of the input; it lies by rank in scratch.

    Without scratch it lies in memory: `IN_MEMORY` lines take 16 MiB. A batch of so many ends on a full disk, too.

    Raises:
        OSError: there is no room for it. (It is taken at once: a mapping that finds none later ends the process.)
    """

    def __init__(self, *, scratch: BinaryIO | None, lines: int) -> None:
        self._lines = lines
        self._begins: array[int] | memoryview[int]  # by rank, as the next are: two assignments cost less than a pack
        self._lengths: array[int] | memoryview[int]
        self._mapped: mmap.mmap | None = None
        if scratch is None:
            self._begins, self._lengths = (array("Q", bytes(8 * lines)) for _ in range(2))
        else:
            os.posix_fallocate(scratch.fileno(), 0, lines * _RECORD.size)
            self._mapped = mmap.mmap(scratch.fileno(), lines * _RECORD.size)
            both = memoryview(self._mapped).cast("Q")
            self._begins, self._lengths = both[:lines], both[lines:]
            both.release()
        self._ends = {True: 0, False: _FAILED}

    def close(self) -> None:
        """Let go of the scratch."""
        for numbers in (self._begins, self._lengths):
            if isinstance(numbers, memoryview):  # a fault on its way up may hold on to it
                numbers.release()
        if self._mapped is not None:
            self._mapped.close()

    def add(self, *, lengths: list[int], succeeded: Sequence[int], ranks: Sequence[int]) -> None:
        """Add lines in the order in which they are written: their bytes, which succeeded, and their ranks."""
        into_output = lengths
        failed = list(compress(range(len(lengths)), map(not_, succeeded)))
        if failed:
            into_output = lengths.copy()
            for at in failed:
                into_output[at] = 0
        begins = list(accumulate(into_output, initial=self._ends[True]))
        self._ends[True] = begins.pop()
        for at in failed:
            begins[at] = self._ends[False]
            self._ends[False] += lengths[at]
        all_begins, all_lengths = self._begins, self._lengths
        for rank, begin, length in zip(ranks, begins, lengths, strict=True):
            all_begins[rank] = begin
            all_lengths[rank] = length

    def write(self, writer: BlobWriter) -> None:
        """Write the whole order."""
        for first in range(0, self._lines, _AT_ONCE * _BLOCK):
            data = self._records(first, first + _AT_ONCE * _BLOCK)
            blocks = (data[at : at + _RECORDS_BYTES] for at in range(0, len(data), _RECORDS_BYTES))
            writer.write(b"".join(block + _CRC.pack(zlib.crc32(block)) for block in blocks))

    def _records(self, first: int, end: int) -> bytes:
        begins, lengths = (array("Q", numbers[first:end].tobytes()) for numbers in (self._begins, self._lengths))
        records = array("Q", bytes(len(begins) * _RECORD.size))
        records[::2], records[1::2] = begins, lengths
        if sys.byteorder == "big":
            records.byteswap()
        return records.tobytes()


def read_order(blobs: Blobs, key: str, *, lines: int, first: int, count: int) -> list[Place]:
    """Return the places of at most `count` Results from the rank `first` on; the order is of so many lines.

    Raises:
        BlobMissing: its bytes are gone.
        DamagedOrder: they are not what was written.
    """
    last = min(first + count, lines)
    if first >= last:
        return []
    begin, end = first // _BLOCK * _BLOCK, min(-(-last // _BLOCK) * _BLOCK, lines)
    at = begin // _BLOCK * _BLOCK_BYTES
    data = blobs.read(key, offset=at, length=order_bytes(end) - at)
    records = b"".join(_checked(key, data))
    size = _RECORD.size
    found = _RECORD.iter_unpack(memoryview(records)[(first - begin) * size : (last - begin) * size])
    return [Place(where >= _FAILED, where & ~_FAILED, length) for where, length in found]


def _checked(key: str, data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), _BLOCK_BYTES):
        block = data[at : at + _BLOCK_BYTES]
        records, crc = block[: -_CRC.size], block[-_CRC.size :]
        if _CRC.pack(zlib.crc32(records)) != crc:
            raise DamagedOrder(f"{key}: the block at byte {at} of what was read has another checksum")
        yield records
