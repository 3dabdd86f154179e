"""Bytes on a local disk: temporary name, fsync, rename, fsync of the directory.

A failed fsync is never tried again: the kernel may have dropped the pages and report success the second time
(reliability, finding 4).
"""

import hashlib
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from io import BufferedWriter
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import BinaryIO, cast

from batchmill.blobs.blobs import BlobMissing, Span, Written, check_key, gather, is_key

_SHELVES = 256  # folders that the keys are spread over
_UNFINISHED = ".part"  # ends the name of bytes on their way; no key has a dot
_BUFFER = 1 << 20
_FEW = 4 << 20  # bytes that are not worth a thread
_PIECES = 4  # that wait for the disk


class DiskBlobs:
    """Blobs below one folder, which is made if it is missing; `fsync` is there to be timed."""

    def __init__(self, *, folder: Path, fsync: Callable[[int], None] = os.fsync) -> None:
        self._folder = folder
        self._fsync = fsync
        self._shelves = [folder / f"{shelf:02x}" for shelf in range(_SHELVES)]
        for shelf in self._shelves:
            shelf.mkdir(parents=True, exist_ok=True)
        sync_folder(folder, fsync)
        sync_folder(folder.parent, fsync)

    def __reduce__(self) -> tuple[Callable[[], "DiskBlobs"], tuple[()]]:
        """In another process (a large input is validated in one) fsync is the plain one: the clock on it stays here."""
        return partial(DiskBlobs, folder=self._folder), ()

    @property
    def is_local(self) -> bool:
        """See `Blobs`."""
        return True

    def writer(self, key: str) -> "DiskWriter":
        """See `Blobs`."""
        path = self._path(key)
        if path.exists():
            raise FileExistsError(f"a key is written once: {key}")
        return DiskWriter(path, self._fsync)

    def open(self, key: str) -> BinaryIO:
        """See `Blobs`."""
        return self._open(key, buffering=_BUFFER)

    def read(self, key: str, *, offset: int, length: int) -> bytes:
        """See `Blobs`."""
        (data,) = self.read_spans(key, [(offset, length)])
        return data

    def read_spans(self, key: str, spans: Sequence[Span]) -> list[bytes]:
        """See `Blobs`."""
        with self._open(key, buffering=0) as stream:
            return gather(partial(read_exactly, key, stream.fileno()), spans)

    def scratch(self) -> BinaryIO:
        """See `Blobs`."""
        return cast("BinaryIO", tempfile.TemporaryFile(dir=self._folder, buffering=_BUFFER))

    def delete(self, key: str) -> None:
        """See `Blobs`."""
        path = self._path(key)
        _unfinished(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        sync_folder(path.parent, self._fsync)

    def keys(self, *, before: float) -> Iterator[str]:
        """See `Blobs`."""
        for shelf in self._shelves:
            for path in shelf.iterdir():
                key = path.name.removesuffix(_UNFINISHED)
                if is_key(key) and _written_at(path) < before:
                    yield key

    def presign(self, key: str, *, seconds: int, disposition: str, media_type: str) -> str | None:  # noqa: ARG002 - a disk has no address
        """See `Blobs`."""
        return None

    def link(self, key: str, path: Path) -> None:
        """Give a key's bytes a second name outside, which appears whole; its folder is the caller's to sync.

        On a filesystem without hard links the bytes are copied.

        Raises:
            OSError: there is something of that name already, or there is no room.
        """
        source = self._path(key)
        try:
            path.hardlink_to(source)
        except FileExistsError:
            raise
        except OSError:
            copy = _unfinished(path)
            shutil.copyfile(source, copy)
            with copy.open("rb+") as stream:
                os.fsync(stream.fileno())
            copy.rename(path)

    def _open(self, key: str, *, buffering: int) -> BinaryIO:
        try:
            return self._path(key).open("rb", buffering=buffering)
        except FileNotFoundError as missing:
            raise BlobMissing(key) from missing

    def _path(self, key: str) -> Path:
        return self._shelves[zlib.crc32(check_key(key).encode()) % _SHELVES] / key


class DiskWriter:
    """Bytes on their way to one path; many are written and hashed aside, while the next are on their way."""

    def __init__(self, path: Path, fsync: Callable[[int], None]) -> None:
        self._path = path
        self._fsync = fsync
        self._file = _unfinished(path).open("xb", buffering=0)
        self._stream = BufferedWriter(self._file, _BUFFER)
        self._digest = hashlib.sha256()
        self._bytes = 0
        self._aside: _Aside | None = None

    def write(self, data: bytes | memoryview) -> None:
        """See `BlobWriter`."""
        self._bytes += len(data)
        if self._aside is not None:
            self._aside.put(bytes(data))
        elif self._bytes <= _FEW:
            self._put(data)
        else:
            self._aside = _Aside(self._put)
            self._aside.put(bytes(data))

    def _put(self, data: bytes | memoryview) -> None:
        self._stream.write(data)
        self._digest.update(data)

    def finish(self) -> Written:
        """See `BlobWriter`."""
        if self._aside is not None:
            self._aside.end()
            self._aside.check()
        with self._stream as stream:
            stream.flush()
            self._fsync(stream.fileno())
        _unfinished(self._path).rename(self._path)
        sync_folder(self._path.parent, self._fsync)
        return Written(bytes=self._bytes, sha256=self._digest.hexdigest())

    def discard(self) -> None:
        """See `BlobWriter`."""
        if self._aside is not None:
            self._aside.end()
        self._file.close()  # past the buffer: what it holds must not be written any more, the disk may be full
        _unfinished(self._path).unlink(missing_ok=True)


class _Aside:
    """A thread that hands bytes on in their order; some pieces may wait. What goes wrong is raised by the next call."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take
        self._pieces: Queue[bytes | None] = Queue(_PIECES)
        self._fault: BaseException | None = None
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, data: bytes) -> None:
        self.check()
        self._pieces.put(data)

    def check(self) -> None:
        if self._fault is not None:
            raise self._fault

    def end(self) -> None:
        """Hand on what waits, and no more."""
        if self._thread.is_alive():
            self._pieces.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (data := self._pieces.get()) is not None:
            if self._fault is None:
                try:
                    self._take(data)
                except BaseException as fault:  # noqa: BLE001 - raised by the next call
                    self._fault = fault


def _unfinished(path: Path) -> Path:
    return path.with_name(path.name + _UNFINISHED)


def _written_at(path: Path) -> float:
    with suppress(FileNotFoundError):  # finished or deleted since its folder was listed
        return path.stat().st_mtime
    return float("inf")


def read_exactly(key: str, descriptor: int, offset: int, length: int) -> bytes:
    """Return these bytes of an open file that has a key's; raises `BlobMissing` if there are fewer."""
    data = os.pread(descriptor, length, offset)
    if len(data) != length:
        raise BlobMissing(f"{key}: {len(data)} of {length} bytes at {offset}")
    return data


def sync_folder(folder: Path, fsync: Callable[[int], None] = os.fsync) -> None:
    """Make the names in a folder durable: without it a power cut may take a renamed file back."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fsync(descriptor)
    finally:
        os.close(descriptor)
