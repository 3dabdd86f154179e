"""What every place for bytes promises, kept by the disk; and what only a disk can be asked."""

import hashlib
import os
import pickle
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchmill.blobs.blobs import BlobMissing, Blobs, BlobWriter, Written
from batchmill.blobs.disk import DiskBlobs

EVER = float("inf")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the disk's bytes are."""
    return tmp_path / "data" / "blobs"


@pytest.fixture
def blobs(folder: Path) -> Blobs:
    """The place under test."""
    return DiskBlobs(folder=folder)


def put(blobs: Blobs, key: str, data: bytes = b"abc") -> Written:
    """Write a key."""
    writer = blobs.writer(key)
    writer.write(data)
    return writer.finish()


def content(blobs: Blobs, key: str) -> bytes:
    """Read a whole key."""
    with blobs.open(key) as stream:
        return stream.read()


def files(folder: Path) -> list[Path]:
    """Return every file below a folder."""
    return [path for path in folder.rglob("*") if path.is_file()]


@given(chunks=st.lists(st.binary(max_size=200)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
def test_bytes_come_back_as_they_were_written(blobs: Blobs, chunks: list[bytes]) -> None:
    """Whatever was written in whatever pieces is read back, with its length and SHA-256 told."""
    data = b"".join(chunks)
    key = f"key-{len(list(blobs.keys(before=EVER)))}"
    writer = blobs.writer(key)
    for number, chunk in enumerate(chunks):
        writer.write(memoryview(chunk) if number % 2 else chunk)
    assert writer.finish() == Written(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    assert content(blobs, key) == data


def test_nobody_sees_bytes_before_they_are_finished(blobs: Blobs) -> None:
    """A key has no bytes while they are written, even megabytes of them, and all of them at once afterwards."""
    writer = blobs.writer("k")
    writer.write(bytes(3 << 20))
    with pytest.raises(BlobMissing):
        blobs.open("k")
    with pytest.raises(BlobMissing):
        blobs.read("k", offset=0, length=1)
    writer.finish()
    assert content(blobs, "k") == bytes(3 << 20)


def test_discarded_bytes_leave_nothing(blobs: Blobs, folder: Path) -> None:
    """After a discard, said once or twice, there is no trace, and the key can be written."""
    writer = blobs.writer("k")
    writer.write(bytes(3 << 20))
    writer.discard()
    writer.discard()
    assert files(folder) == []
    put(blobs, "k")


def test_a_discard_after_the_end_does_nothing(blobs: Blobs) -> None:
    """Finished bytes stay, whatever the writer does afterwards."""
    writer = blobs.writer("k")
    writer.write(b"abc")
    writer.finish()
    writer.discard()
    assert content(blobs, "k") == b"abc"


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


@pytest.mark.parametrize("key", ["", ".", "..", "../k", "a/b", "a.part", "k\n", "ké", "k\0", " ", "a" * 201])
def test_a_key_that_is_not_ours_is_refused(blobs: Blobs, key: str) -> None:
    """A key has 1 to 200 letters, digits, `_` and `-`; nothing else ever reaches the file system."""
    for call in (blobs.writer, blobs.open, blobs.delete, lambda key: blobs.read(key, offset=0, length=1)):
        with pytest.raises(ValueError, match="key"):
            call(key)


def test_a_key_of_any_length_allowed_is_written(blobs: Blobs) -> None:
    """The longest key works as the shortest does."""
    for key in ("k", "K" * 200):
        put(blobs, key)
        assert content(blobs, key) == b"abc"


def test_a_range_is_read_exactly(blobs: Blobs) -> None:
    """A read gives just the bytes asked for, none if none are asked for."""
    put(blobs, "k", b"0123456789")
    assert blobs.read("k", offset=3, length=4) == b"3456"
    assert blobs.read("k", offset=0, length=10) == b"0123456789"
    assert blobs.read("k", offset=10, length=0) == b""


@pytest.mark.parametrize(("offset", "length"), [(0, 11), (9, 2), (10, 1), (99, 1)])
def test_bytes_that_are_not_there_are_missing(blobs: Blobs, offset: int, length: int) -> None:
    """A read past the end raises BlobMissing, never gives fewer bytes than a row promises."""
    put(blobs, "k", b"0123456789")
    with pytest.raises(BlobMissing):
        blobs.read("k", offset=offset, length=length)


def test_a_reader_can_seek(blobs: Blobs) -> None:
    """An open key is read from any place on, and line by line."""
    put(blobs, "k", b"01234\n5678\n")
    with blobs.open("k") as stream:
        stream.seek(3)
        assert stream.readlines() == [b"34\n", b"5678\n"]


def test_a_reader_keeps_what_it_has_opened(blobs: Blobs) -> None:
    """A download that has begun ends, although the key is deleted meanwhile."""
    put(blobs, "k")
    with blobs.open("k") as stream:
        blobs.delete("k")
        assert stream.read() == b"abc"


def test_deleted_bytes_are_gone(blobs: Blobs) -> None:
    """A deleted key has no bytes; a key without bytes is deleted without an error."""
    put(blobs, "k")
    for _ in range(2):
        blobs.delete("k")
    with pytest.raises(BlobMissing):
        blobs.open("k")
    assert list(blobs.keys(before=EVER)) == []


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


def test_many_bytes_are_written_in_their_order(blobs: Blobs) -> None:
    """What is written and hashed aside is what was given, also where the caller uses its memory again."""
    pieces = [bytes([number]) * 300_000 for number in range(40)]
    writer = blobs.writer("large")
    for piece in pieces:
        memory = bytearray(piece)
        writer.write(memoryview(memory))
        memory[:] = bytes(len(memory))
    written = writer.finish()
    whole = b"".join(pieces)
    assert written == Written(bytes=len(whole), sha256=hashlib.sha256(whole).hexdigest())
    assert blobs.read("large", offset=0, length=len(whole)) == whole


def test_many_bytes_can_be_given_up(blobs: Blobs) -> None:
    """Also while some of them are on their way, and twice."""
    writer = blobs.writer("large")
    for _ in range(10):
        writer.write(bytes(1 << 20))
    writer.discard()
    writer.discard()
    assert list(blobs.keys(before=EVER)) == []
