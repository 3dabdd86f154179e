"""What only a disk can be asked: files, folders, a disk that is full."""

import os
import pickle
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from batchmill.blobs.blobs import Blobs, BlobWriter
from batchmill.blobs.disk import DiskBlobs
from blobs.put import EVER, content, put


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the disk's bytes are."""
    return tmp_path / "data" / "blobs"


@pytest.fixture
def blobs(folder: Path) -> Blobs:
    """The place under test."""
    return DiskBlobs(folder=folder)


def files(folder: Path) -> list[Path]:
    """Return every file below a folder."""
    return [path for path in folder.rglob("*") if path.is_file()]


def test_discarded_bytes_leave_nothing(blobs: Blobs, folder: Path) -> None:
    """After a discard, said once or twice, there is no trace, and the key can be written."""
    writer = blobs.writer("k")
    writer.write(bytes(3 << 20))
    writer.discard()
    writer.discard()
    assert files(folder) == []
    put(blobs, "k")


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_too_much(writer: BlobWriter) -> None:
    """Write more than the disk takes, of which the next call hears: so much is written aside."""
    writer.write(bytes(3 << 20))
    writer.finish()


def write_in_pieces(writer: BlobWriter) -> None:
    """Write until the buffer is full and cannot be emptied."""
    for _ in range(50):
        writer.write(bytes(64_000))


def write_on(writer: BlobWriter) -> None:
    """Write large pieces until one of them hears of it."""
    for _ in range(50):
        writer.write(bytes(1 << 20))


def finish_too_much(writer: BlobWriter) -> None:
    """Write what fits the buffer but not the disk."""
    writer.write(bytes(200_000))
    writer.finish()


@pytest.mark.parametrize("attempt", [write_too_much, write_in_pieces, write_on, finish_too_much])
def test_a_full_disk_leaves_nothing_behind(blobs: Blobs, folder: Path, attempt: Callable[[BlobWriter], None]) -> None:
    """Where bytes cannot be written the writer raises, and its discard succeeds and gives their room back."""
    writer = blobs.writer("k")
    with full_disk(100_000):
        with pytest.raises(OSError, match="File too large"):
            attempt(writer)
        writer.discard()
    assert files(folder) == []
    put(blobs, "k")


def test_a_key_is_written_once(blobs: Blobs) -> None:
    """A key that has bytes, or is being written, is not written again, and keeps what it has."""
    put(blobs, "k", b"first")
    with pytest.raises(FileExistsError):
        blobs.writer("k")
    assert content(blobs, "k") == b"first"
    writer = blobs.writer("l")
    with pytest.raises(FileExistsError):
        blobs.writer("l")
    writer.discard()


def test_a_reader_keeps_what_it_has_opened(blobs: Blobs) -> None:
    """A download that has begun ends, although the key is deleted meanwhile."""
    put(blobs, "k")
    with blobs.open("k") as stream:
        blobs.delete("k")
        assert stream.read() == b"abc"


def test_half_written_bytes_are_named_and_deleted(blobs: Blobs, folder: Path) -> None:
    """What a writer left that died is named by its key and deleted by it; a writer that lives on then fails."""
    writer = blobs.writer("k")
    writer.write(bytes(3 << 20))
    assert list(blobs.keys(before=EVER)) == ["k"]
    blobs.delete("k")
    assert files(folder) == []
    with pytest.raises(OSError, match="No such file"):
        writer.finish()
    assert list(blobs.keys(before=EVER)) == []


def test_keys_are_named_by_age(blobs: Blobs, folder: Path) -> None:
    """Only what was last written before the given second is named."""
    for key, written_at in (("old", 1000), ("new", 2000)):
        put(blobs, key)
        (path,) = [path for path in files(folder) if path.name == key]
        os.utime(path, (written_at, written_at))
    assert list(blobs.keys(before=1000)) == []
    assert list(blobs.keys(before=1001)) == ["old"]
    assert sorted(blobs.keys(before=2001)) == ["new", "old"]


def test_keys_may_vanish_while_they_are_named(blobs: Blobs, folder: Path) -> None:
    """What is deleted in the middle of the naming is passed over."""
    writers = {f"key-{number}": blobs.writer(f"key-{number}") for number in range(100)}
    named = set()
    for key in blobs.keys(before=EVER):
        named.add(key)
        (path,) = folder.rglob(f"{key}.part")
        for neighbour in path.parent.iterdir():
            blobs.delete(neighbour.stem)
    assert named < writers.keys()  # some had a neighbour, which was not named any more
    assert files(folder) == []
    for writer in writers.values():
        writer.discard()


def test_what_is_not_ours_is_not_named(blobs: Blobs, folder: Path) -> None:
    """A stray file, beside the shelves or on one, is never named, so never deleted."""
    (folder / "README").touch()
    (folder / "00" / "lost.txt").touch()
    assert list(blobs.keys(before=EVER)) == []


def test_bytes_outlive_the_process(blobs: Blobs, folder: Path) -> None:
    """Another process that opens the same folder, or is handed the place, finds the bytes."""
    put(blobs, "k")
    assert content(DiskBlobs(folder=folder), "k") == b"abc"
    assert content(pickle.loads(pickle.dumps(blobs)), "k") == b"abc"  # noqa: S301 - as a child process gets it
