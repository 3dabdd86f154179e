"""What holds bytes by key: the seam between the rooms above and a disk or a bucket.

All calls block; the rooms above make them in threads. A key is written once and never changed. A key holds letters,
digits, `_` and `-` only, and is ours: nothing a client named ever becomes one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol


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

    def delete(self, key: str) -> None:
        """Remove the bytes durably, half-written ones too; a key without bytes is no error."""
        ...

    def keys(self, *, before: float) -> Iterator[str]:
        """Name the keys last written before this Unix second, half-written bytes included."""
        ...
