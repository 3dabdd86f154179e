"""The bytes of a Segment: Results as a group commit lays them down, each behind a short head."""

import struct
import zlib
from collections.abc import Iterator, Sequence

import msgspec

from batchmill.spec.objects import Usage

_HEAD = struct.Struct("<HBBI")  # index in the Slice, 1 if it succeeded, attempts used, bytes of the line
_ATTEMPTS_MOST = 255


class DamagedSegment(Exception):  # noqa: N818 - it states what is so
    """The bytes are not those that were committed (invariant R19)."""


class Result(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a Request became.

    `text` is its line of the output file (if `succeeded`) or of the error file, with its line end; `index` its place
    in the Slice; `attempts` the number of sends that it took, 0 if it was never answered. `usage` and `backend`, which
    had the last word, are counted and not kept.
    """

    index: int
    succeeded: bool
    attempts: int
    text: bytes
    usage: Usage | None = None
    backend: str | None = None


def pack_results(results: Sequence[Result]) -> bytes:
    """Return the bytes of a Segment."""
    pieces: list[bytes] = []
    for result in results:
        attempts = min(result.attempts, _ATTEMPTS_MOST)
        pieces += (_HEAD.pack(result.index, result.succeeded, attempts, len(result.text)), result.text)
    return b"".join(pieces)


def find_results(data: bytes, *, crc32: int) -> list[tuple[int, bool, int, int, int]]:
    """Return where the Results of a Segment are: index, succeeded, attempts, start and end of the line's bytes.

    Raises:
        DamagedSegment: the checksum is another.
    """
    if zlib.crc32(data) != crc32:
        raise DamagedSegment(f"{len(data)} bytes with checksum {zlib.crc32(data)}, not {crc32}")
    found: list[tuple[int, bool, int, int, int]] = []
    at, all_bytes, head = 0, len(data), _HEAD.size
    while at < all_bytes:
        index, succeeded, attempts, length = _HEAD.unpack_from(data, at)
        start = at + head
        at = start + length
        found.append((index, succeeded == 1, attempts, start, at))
    return found


def unpack_results(data: bytes, *, crc32: int) -> Iterator[Result]:
    """Yield the Results of a Segment in the order in which they came (usage is not kept: the batch has counted it).

    Raises:
        DamagedSegment: the checksum is another.
    """
    for index, succeeded, attempts, start, end in find_results(data, crc32=crc32):
        yield Result(index=index, succeeded=succeeded, attempts=attempts, text=data[start:end])
