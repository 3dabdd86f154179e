"""A key that stands for a file outside: read as it was measured, or not at all."""

import os
import pickle
from pathlib import Path

import pytest

from batchmill.blobs.blobs import BlobMissing
from batchmill.blobs.disk import DiskBlobs
from batchmill.blobs.in_place import FileChanged, InPlaceBlobs, measure

_TEXT = b"one\ntwo\nthree\n"
_LATER = 5_000_000_000  # ns: no filesystem's clock is so coarse


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file outside."""
    path = tmp_path / "input.jsonl"
    path.write_bytes(_TEXT)
    return path


@pytest.fixture
def blobs(tmp_path: Path, path: Path) -> InPlaceBlobs:
    """Blobs in which the key `input` stands for the file."""
    return InPlaceBlobs(key="input", file=measure(path), blobs=DiskBlobs(folder=tmp_path / "blobs"))


def _write(path: Path, text: bytes) -> None:
    """Write into the file as an editor would, a while after it was measured."""
    stamp = path.stat().st_mtime_ns + _LATER
    path.write_bytes(text)
    os.utime(path, ns=(stamp, stamp))


def test_a_file_is_measured_whole(path: Path) -> None:
    """Size and SHA-256 are those of the whole file, and it is unchanged until somebody writes or removes it."""
    file = measure(path)
    assert (file.bytes, file.sha256) == (14, "b6285c57e8797db5d4c51c80d6f11938afda9b11c6a003549709189e9b4b92a2")
    assert file.is_unchanged()
    _write(path, _TEXT + b"four\n")
    assert not file.is_unchanged()
    path.unlink()
    assert not file.is_unchanged()


def test_the_bytes_are_read_where_they_lie(blobs: InPlaceBlobs, path: Path) -> None:
    """Ranges and lines of the key are those of the file, and no copy is made."""
    assert blobs.read("input", offset=4, length=3) == b"two"
    with blobs.open("input") as stream:
        assert [stream.readline(100), stream.readline(2)] == [b"one\n", b"tw"]
        assert stream.seek(8) == 8
        assert stream.read() == b"three\n"
    assert list(blobs.keys(before=float("inf"))) == []
    with pytest.raises(BlobMissing):
        blobs.read("input", offset=10, length=5)
    assert path.read_bytes() == _TEXT


def test_every_other_key_is_elsewhere(blobs: InPlaceBlobs) -> None:
    """Other keys are written, read, listed and deleted as ever."""
    writer = blobs.writer("other")
    writer.write(b"text")
    writer.finish()
    assert blobs.read("other", offset=1, length=2) == b"ex"
    with blobs.open("other") as stream:
        assert stream.read() == b"text"
    assert list(blobs.keys(before=float("inf"))) == ["other"]
    blobs.delete("other")
    with pytest.raises(BlobMissing):
        blobs.open("other")


def test_the_file_is_never_written_or_deleted(blobs: InPlaceBlobs, path: Path) -> None:
    """What the engine does to a key cannot hurt the user's own file."""
    with pytest.raises(FileExistsError):
        blobs.writer("input")
    blobs.delete("input")
    assert path.read_bytes() == _TEXT


@pytest.mark.parametrize("change", ["written", "replaced", "gone"])
def test_a_changed_file_gives_no_byte(blobs: InPlaceBlobs, path: Path, change: str) -> None:
    """A file that was written to, replaced by another of the same size and time, or removed is not read any more."""
    if change == "written":
        _write(path, b"ONE\nTWO\nTHREE\n")
    else:
        stamp = path.stat().st_mtime_ns
        path.rename(path.with_suffix(".old"))
        if change == "replaced":
            path.write_bytes(b"ONE\nTWO\nTHREE\n")
            os.utime(path, ns=(stamp, stamp))
    with pytest.raises(FileChanged):
        blobs.read("input", offset=0, length=3)
    with pytest.raises(FileChanged), blobs.open("input") as stream:
        stream.readline(10)


def test_a_file_that_changes_under_a_reader_ends_the_reading(blobs: InPlaceBlobs, path: Path) -> None:
    """A stream that was opened before the change gives nothing that was read after it."""
    with blobs.open("input") as stream:
        _write(path, b"ONE\nTWO\nTHREE\n")
        with pytest.raises(FileChanged):
            stream.readline(10)


def test_they_reach_a_child_process(blobs: InPlaceBlobs) -> None:
    """A large input is validated in a process of its own: the Blobs and what they raise can be sent there and back."""
    assert pickle.loads(pickle.dumps(blobs)).read("input", offset=0, length=3) == b"one"  # noqa: S301 - our own bytes
    raised = pickle.loads(pickle.dumps(FileChanged("input.jsonl")))  # noqa: S301 - the same
    assert (type(raised), str(raised)) == (FileChanged, "input.jsonl")
