"""What holds bytes by key: the seam between the rooms above and a disk or a bucket.

All calls block; the rooms above make them in threads. A key is written once and never changed. A key holds letters,
digits, `_` and `-` only, and is ours: nothing a client named ever becomes one.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

Span = tuple[int, int]  # offset and length, in bytes

_KEY = re.compile(r"[A-Za-z0-9_-]{1,200}")
_GAP = 16 << 10  # bytes: to read so many more costs less than to read twice
_AT_ONCE = 8 << 20


class BlobMissing(Exception):  # noqa: N818 - it states what is so
    """There are no bytes under this key, or fewer than a row promises."""


class BlobsAway(OSError):  # noqa: N818 - it states what is so
    """What holds the bytes does not answer, or refuses us, and was asked for some seconds.

    Nothing is lost and nothing is wrong with any batch: whoever meets it waits and asks again.
    """


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

    @property
    def is_local(self) -> bool:
        """Whether a read of few bytes costs next to nothing; where it is a request, many should be one."""
        ...

    def writer(self, key: str) -> BlobWriter:
        """Begin to write a key.

        Raises:
            OSError: there is no room, or the key has bytes already; a bucket may say so in `finish` only.
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

    def presign(self, key: str, *, seconds: int, disposition: str, media_type: str) -> str | None:
        """Return a URL by which anybody may read a key's bytes for so long, under these two headers.

        None: these bytes have no address of their own.
        """
        ...


def is_key(text: str) -> bool:
    """Say whether this may be a key."""
    return _KEY.fullmatch(text) is not None


def check_key(key: str) -> str:
    """Return a key that is one of ours; raises ValueError for any other."""
    if not is_key(key):
        raise ValueError(f"not a key of ours: {key!r}")
    return key


@dataclass(slots=True)
class Extent:
    """Bytes that are read at once, from `begin` to `end`, and which of the spans asked for lie in them."""

    begin: int
    end: int
    inside: list[int]


def merge(spans: Sequence[Span], *, gap: int = _GAP) -> list[Extent]:
    """Return what is to be read for these spans: those that lie no further apart than `gap` bytes at once."""
    extents: list[Extent] = []
    for at in sorted(range(len(spans)), key=spans.__getitem__):
        offset, length = spans[at]
        last = extents[-1] if extents else None
        if last is None or offset > last.end + gap or offset + length > last.begin + _AT_ONCE:
            extents.append(Extent(offset, offset + length, [at]))
        else:
            last.inside.append(at)
            last.end = max(last.end, offset + length)
    return extents


def share_out(data: bytes, extent: Extent, spans: Sequence[Span], found: list[bytes]) -> None:
    """Give each span in an extent its part of the extent's bytes."""
    for at in extent.inside:
        offset, length = spans[at]
        found[at] = data[offset - extent.begin : offset - extent.begin + length]


def gather(read: Callable[[int, int], bytes], spans: Sequence[Span]) -> list[bytes]:
    """Return the bytes of each span, with few calls of `read` (offset, length), which returns just those bytes."""
    found = [b""] * len(spans)
    for extent in merge(spans):
        share_out(read(extent.begin, extent.end - extent.begin), extent, spans, found)
    return found
