"""The promises of `Blobs`, on a disk."""

import hashlib
import os
from pathlib import Path

import pytest

from batchmill.blobs.blobs import BlobMissing
from batchmill.blobs.disk import DiskBlobs

_EVER = float("inf")


@pytest.fixture
def blobs(tmp_path: Path) -> DiskBlobs:
    """An empty folder of blobs."""
    return DiskBlobs(folder=tmp_path / "blobs")


def _put(blobs: DiskBlobs, key: str, data: bytes) -> None:
    writer = blobs.writer(key)
    writer.write(data)
    writer.finish()


def test_what_was_written_is_read(blobs: DiskBlobs) -> None:
    """A finished blob says its size and SHA-256 and reads back whole, in parts, and line by line."""
    writer = blobs.writer("key-1")
    writer.write(b"one\n")
    writer.write(memoryview(b"two\n"))
    written = writer.finish()
    assert (written.bytes, written.sha256) == (8, hashlib.sha256(b"one\ntwo\n").hexdigest())
    assert blobs.read("key-1", offset=4, length=3) == b"two"
    with blobs.open("key-1") as stream:
        assert stream.readlines() == [b"one\n", b"two\n"]


def test_nothing_is_seen_before_the_end(blobs: DiskBlobs) -> None:
    """Bytes on their way cannot be read; discarded, they are gone."""
    writer = blobs.writer("key")
    writer.write(b"x" * (3 << 20))
    with pytest.raises(BlobMissing):
        blobs.open("key")
    writer.discard()
    writer.discard()
    assert list(blobs.keys(before=_EVER)) == []


def test_a_discard_after_the_end_does_nothing(blobs: DiskBlobs) -> None:
    """A writer that finished cannot take its bytes back."""
    writer = blobs.writer("key")
    writer.write(b"x")
    writer.finish()
    writer.discard()
    assert blobs.read("key", offset=0, length=1) == b"x"


def test_a_key_is_written_once(blobs: DiskBlobs) -> None:
    """A second writer of a finished key is refused."""
    _put(blobs, "key", b"x")
    with pytest.raises(FileExistsError):
        blobs.writer("key")


@pytest.mark.parametrize("key", ["", "..", "a/b", "../x", "a.b", "a\0b", "é", "x" * 201])
def test_only_keys_of_ours_become_paths(blobs: DiskBlobs, key: str) -> None:
    """A key with anything but letters, digits, `_` and `-` is refused."""
    with pytest.raises(ValueError, match="not a key"):
        blobs.open(key)


def test_too_short_is_missing(blobs: DiskBlobs) -> None:
    """A read past the end is an error, never fewer bytes."""
    _put(blobs, "key", b"abc")
    with pytest.raises(BlobMissing):
        blobs.read("key", offset=2, length=2)
    with pytest.raises(BlobMissing):
        blobs.read("other", offset=0, length=0)


def test_a_delete_may_be_said_again(blobs: DiskBlobs) -> None:
    """Deleting removes the bytes; deleting what is not there is no error; an open reader reads on."""
    _put(blobs, "key", b"abc")
    with blobs.open("key") as stream:
        blobs.delete("key")
        blobs.delete("key")
        assert stream.read() == b"abc"
    with pytest.raises(BlobMissing):
        blobs.open("key")


def test_old_keys_are_named(blobs: DiskBlobs, tmp_path: Path) -> None:
    """`keys` names what was written before a moment, half-written bytes included, and nothing younger."""
    _put(blobs, "old", b"x")
    _put(blobs, "young", b"x")
    torn = blobs.writer("torn")
    for path in (tmp_path / "blobs").rglob("*"):
        if path.is_file() and "young" not in path.name:
            os.utime(path, (1000, 1000))
    assert sorted(blobs.keys(before=2000)) == ["old", "torn"]
    blobs.delete("torn")
    assert sorted(blobs.keys(before=_EVER)) == ["old", "young"]
    torn.discard()


def test_a_full_disk_is_an_error(blobs: DiskBlobs, tmp_path: Path) -> None:
    """A writer whose bytes cannot be kept raises, and leaves nothing under the key."""
    writer = blobs.writer("key")
    os.dup2(os.open("/dev/full", os.O_WRONLY), writer._file.fileno())
    writer.write(b"x")
    with pytest.raises(OSError, match="No space left"):
        writer.finish()
    writer.discard()
    assert [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == []
