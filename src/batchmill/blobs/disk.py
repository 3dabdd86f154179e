"""Bytes on a local disk: temporary name, fsync, rename, fsync of the directory.

A failed fsync is never tried again: the kernel may have dropped the pages and report success the second time
(reliability, finding 4).
"""

import hashlib
import os
import re
import secrets
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from batchmill.blobs.blobs import BlobMissing, Written

_KEY = re.compile(r"[A-Za-z0-9_-]{1,200}")
_UNFINISHED = ".part"
_SHELVES = 256  # folders the keys are spread over
_BUFFER = 1 << 20


class DiskBlobs:
    """Blobs below one folder, which is made if it is missing."""

    def __init__(self, *, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def writer(self, key: str) -> "DiskWriter":
        """See `Blobs`."""
        path = self._path(key)
        if not path.parent.is_dir():
            path.parent.mkdir(exist_ok=True)
            _sync_folder(self._folder)
        return DiskWriter(path)

    def open(self, key: str) -> BinaryIO:
        """See `Blobs`."""
        try:
            return self._path(key).open("rb", buffering=_BUFFER)
        except FileNotFoundError as missing:
            raise BlobMissing(key) from missing

    def read(self, key: str, *, offset: int, length: int) -> bytes:
        """See `Blobs`."""
        with self.open(key) as stream:
            data = os.pread(stream.fileno(), length, offset)
        if len(data) != length:
            raise BlobMissing(f"{key}: {len(data)} of {length} bytes at {offset}")
        return data

    def delete(self, key: str) -> None:
        """See `Blobs`."""
        path = self._path(key)
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            _sync_folder(path.parent)

    def keys(self, *, before: float) -> Iterator[str]:
        """See `Blobs`. Half-written bytes have names that no row has."""
        for shelf in self._folder.iterdir():
            for path in shelf.iterdir():
                if path.stat().st_mtime < before:
                    yield path.name

    def _path(self, key: str) -> Path:
        name = key.removesuffix(_UNFINISHED)
        if not _KEY.fullmatch(name.split(".")[0]):
            raise ValueError(f"not a key of ours: {key!r}")
        return self._folder / f"{zlib.crc32(name.split('.')[0].encode()) % _SHELVES:02x}" / key


class DiskWriter:
    """Bytes on their way to one path."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_UNFINISHED}")
        self._stream = self._part.open("xb", buffering=_BUFFER)
        self._digest = hashlib.sha256()
        self._bytes = 0

    def write(self, data: bytes | memoryview) -> None:
        """See `BlobWriter`."""
        self._stream.write(data)
        self._digest.update(data)
        self._bytes += len(data)

    def finish(self) -> Written:
        """See `BlobWriter`."""
        with self._stream as stream:
            stream.flush()
            os.fsync(stream.fileno())
        self._part.rename(self._path)
        _sync_folder(self._path.parent)
        return Written(bytes=self._bytes, sha256=self._digest.hexdigest())

    def discard(self) -> None:
        """See `BlobWriter`."""
        self._stream.close()
        self._part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
