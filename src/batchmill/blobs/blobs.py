"""What holds bytes by key: the seam between the rooms above and a disk or a bucket.

All calls block; the rooms above make them in threads. A key is written once and never changed. A key holds letters,
digits, `_` and `-` only, and is ours: nothing a client named ever becomes one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

Span = tuple[int, int]  # offset and length, in bytes

_GAP = 16 << 10  # bytes: to read so many more costs less than to read twice
_AT_ONCE = 8 << 20


class BlobMissing(Exception):  # noqa: N818 - it states what is so
    """There are no bytes under this key, or fewer than a row promises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """Bytes that are durable: their number and, in hex, their SHA-256."""

    bytes: int
    sha256: str


class BlobWriter(Protocol):
    """Bytes on their way; nobody sees them before `finish`."""

    def write(self, data: bytes | memoryview) -> None:
        """Take more bytes."""
        ...

    def finish(self) -> Written:
        """Make the bytes durable under the key: after this returns they outlive a power cut.

        Raises:
            OSError: they are not, and nothing was tried twice; the caller starts again with another key.
        """
        ...

    def discard(self) -> None:
        """Give the bytes up; after `finish` it does nothing."""
        ...


class Blobs(Protocol):
    """Where the bytes are."""

    def writer(self, key: str) -> BlobWriter:
        """Begin to write a key.

        Raises:
            OSError: there is no room, or the key has bytes already.
        """
        ...

    def open(self, key: str) -> BinaryIO:
        """Return a seekable reader; the caller closes it. Raises `BlobMissing`."""
        ...

    def read(self, key: str, *, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset` on. Raises `BlobMissing` if there are fewer."""
        ...

    def read_spans(self, key: str, spans: Sequence[Span]) -> list[bytes]:
        """Return the bytes of each span, in any order asked for; raises `BlobMissing` if there are fewer.

        Spans that lie close together are read at once.
        """
        ...

    def scratch(self) -> BinaryIO:
        """Return an empty file on the local disk, without a name: it is gone when it is closed, or its process ends.

        It has a descriptor. Raises OSError where there is no room.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove the bytes durably, half-written ones too; a key without bytes is no error."""
        ...

    def keys(self, *, before: float) -> Iterator[str]:
        """Name the keys last written before this Unix second, half-written bytes included."""
        ...


def gather(read: Callable[[int, int], bytes], spans: Sequence[Span]) -> list[bytes]:
    """Return the bytes of each span, with few calls of `read` (offset, length), which returns just those bytes."""
    found = [b""] * len(spans)
    together: list[int] = []
    begin = end = 0
    for at in sorted(range(len(spans)), key=spans.__getitem__):
        offset, length = spans[at]
        if together and (offset > end + _GAP or offset + length > begin + _AT_ONCE):
            _share_out(read(begin, end - begin), begin, together, spans, found)
            together.clear()
        if not together:
            begin = end = offset
        together.append(at)
        end = max(end, offset + length)
    if together:
        _share_out(read(begin, end - begin), begin, together, spans, found)
    return found


def _share_out(data: bytes, begin: int, together: Sequence[int], spans: Sequence[Span], found: list[bytes]) -> None:
    for at in together:
        offset, length = spans[at]
        found[at] = data[offset - begin : offset - begin + length]
