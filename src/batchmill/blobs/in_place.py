"""One key that stands for a file outside, read where it lies; every other key is in other Blobs.

The bytes of two versions of the file never mix: each read is followed by a look at what the filesystem says of the
file, and what was read of a changed one is thrown away.
"""

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from batchmill.blobs.blobs import Blobs, BlobWriter, Span, gather
from batchmill.blobs.disk import read_exactly

_BUFFER = 1 << 20

Stamp = tuple[int, int, int, int]  # device, inode, size, and the last change in nanoseconds


class FileChanged(Exception):  # noqa: N818 - it states what happened
    """The file is not as it was when it was measured: written to, replaced or gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideFile:
    """A file as it was when all of it was read: `bytes`, and in hex its SHA-256."""

    path: Path
    stamp: Stamp
    bytes: int
    sha256: str

    def is_unchanged(self) -> bool:
        """Say whether the filesystem still knows it as it was measured; false for a mere `touch`, too."""
        try:
            return _stamp(self.path.stat()) == self.stamp
        except OSError:
            return False

    def check(self, descriptor: int) -> None:
        """Raise FileChanged unless this open file is the one measured, unchanged."""
        if _stamp(os.fstat(descriptor)) != self.stamp:
            raise FileChanged(str(self.path))


def measure(path: Path) -> OutsideFile:
    """Read a whole file; blocking.

    Raises:
        OSError: it cannot be read.
        FileChanged: it was written to meanwhile.
    """
    with path.open("rb", buffering=0) as stream:
        stamp = _stamp(os.fstat(stream.fileno()))
        digest = hashlib.file_digest(stream, "sha256")
        size = stream.tell()
        measured = OutsideFile(path=path, stamp=stamp, bytes=size, sha256=digest.hexdigest())
        measured.check(stream.fileno())
    return measured


class InPlaceBlobs:
    """Blobs in which `key` has the bytes of a file outside. That file is never written, and never deleted."""

    def __init__(self, *, key: str, file: OutsideFile, blobs: Blobs) -> None:
        self._key = key
        self._file = file
        self._blobs = blobs

    @property
    def is_local(self) -> bool:
        """See `Blobs`; of the file, which is the input."""
        return True

    def writer(self, key: str) -> BlobWriter:
        """See `Blobs`."""
        if key == self._key:
            raise FileExistsError(f"a key is written once: {key}")
        return self._blobs.writer(key)

    def open(self, key: str) -> BinaryIO:
        """See `Blobs`. Raises FileChanged, as every read of it does."""
        if key != self._key:
            return self._blobs.open(key)
        return io.BufferedReader(self._open(), _BUFFER)

    def read(self, key: str, *, offset: int, length: int) -> bytes:
        """See `Blobs`. Raises FileChanged."""
        (data,) = self.read_spans(key, [(offset, length)])
        return data

    def read_spans(self, key: str, spans: Sequence[Span]) -> list[bytes]:
        """See `Blobs`. Raises FileChanged."""
        if key != self._key:
            return self._blobs.read_spans(key, spans)
        with self._open() as stream:
            try:
                return gather(partial(read_exactly, key, stream.fileno()), spans)
            finally:
                self._file.check(stream.fileno())

    def scratch(self) -> BinaryIO:
        """See `Blobs`."""
        return self._blobs.scratch()

    def delete(self, key: str) -> None:
        """See `Blobs`; the file outside is not ours to delete."""
        if key != self._key:
            self._blobs.delete(key)

    def keys(self, *, before: float) -> Iterator[str]:
        """See `Blobs`."""
        return self._blobs.keys(before=before)

    def presign(self, key: str, *, seconds: int, disposition: str, media_type: str) -> str | None:
        """See `Blobs`; the file outside has no address."""
        if key == self._key:
            return None
        return self._blobs.presign(key, seconds=seconds, disposition=disposition, media_type=media_type)

    def _open(self) -> "_Watched":
        try:
            return _Watched(self._file)
        except FileNotFoundError as gone:
            raise FileChanged(str(self._file.path)) from gone


class _Watched(io.FileIO):
    """An open file that gives no byte that may not be of the version measured."""

    def __init__(self, file: OutsideFile) -> None:
        super().__init__(file.path, "rb")
        self._file = file

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        count = super().readinto(buffer)
        self._file.check(self.fileno())
        return count

    def readall(self) -> bytes:
        data = super().readall()
        self._file.check(self.fileno())
        return data


def _stamp(found: os.stat_result) -> Stamp:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
