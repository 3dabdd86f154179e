"""What every place for bytes promises: kept by the disk and by a bucket."""

import hashlib
import pickle
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchmill.blobs.blobs import BlobMissing, Blobs, Span, Written
from batchmill.blobs.disk import DiskBlobs
from blobs.put import EVER, content, put
from bucket import bucket_of

LARGE = 20 << 20  # bytes: more than one part of a bucket's, and more than is read at once


@pytest.fixture(params=["disk", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    """The place under test."""
    if request.param == "disk":
        return DiskBlobs(folder=tmp_path / "blobs")
    return bucket_of(request.config).blobs(tmp_path, patience=0.5)


def large(size: int = LARGE) -> bytes:
    """Return bytes of which no two pieces are alike."""
    return random.Random(0).randbytes(size)  # noqa: S311 - a test's own dice


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


def test_a_discard_after_the_end_does_nothing(blobs: Blobs) -> None:
    """Finished bytes stay, whatever the writer does afterwards."""
    writer = blobs.writer("k")
    writer.write(b"abc")
    writer.finish()
    writer.discard()
    assert content(blobs, "k") == b"abc"


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


def test_deleted_bytes_are_gone(blobs: Blobs) -> None:
    """A deleted key has no bytes; a key without bytes is deleted without an error."""
    put(blobs, "k")
    for _ in range(2):
        blobs.delete("k")
    with pytest.raises(BlobMissing):
        blobs.open("k")
    assert list(blobs.keys(before=EVER)) == []


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


def test_a_key_is_written_once(blobs: Blobs) -> None:
    """A key that has bytes, few or many, is not written again, and keeps what it has."""
    put(blobs, "k", b"first")
    for data in (b"other", bytes(LARGE)):
        with pytest.raises(FileExistsError):
            put(blobs, "k", data)
        assert content(blobs, "k") == b"first"


def test_discarded_bytes_leave_nothing(blobs: Blobs) -> None:
    """After a discard, said once or twice, no key is named, and the key can be written."""
    for size in (5, LARGE):
        writer = blobs.writer("k")
        writer.write(bytes(size))
        writer.discard()
        writer.discard()
        assert list(blobs.keys(before=EVER)) == []
    put(blobs, "k")


def test_half_written_bytes_are_named_and_deleted(blobs: Blobs) -> None:
    """What a writer left that died is named by its key and deleted by it; a writer that lives on then fails."""
    writer = blobs.writer("k")
    writer.write(large())
    assert list(blobs.keys(before=EVER)) == ["k"]
    blobs.delete("k")
    assert list(blobs.keys(before=EVER)) == []
    with pytest.raises(OSError, match=r"k|No such file"):
        writer.finish()
    assert list(blobs.keys(before=EVER)) == []


def test_many_bytes_are_read_from_anywhere(blobs: Blobs) -> None:
    """A large key is read on and on, line by line, and from any place on, forward and back."""
    data = large()
    put(blobs, "k", data)
    with blobs.open("k") as stream:
        assert stream.read(3) == data[:3]
        assert stream.seek(-5, 2) == LARGE - 5
        assert stream.read() == data[-5:]
        assert stream.read(1) == b""
        assert stream.seek(9 << 20) == stream.tell()
        assert stream.read(8 << 20) == data[9 << 20 : 17 << 20]
        assert stream.seek(7) == 7
        assert b"".join(stream) == data[7:]


SPANS = st.lists(st.tuples(st.integers(0, LARGE - 70_000), st.integers(0, 70_000)), max_size=20)


def test_spans_are_read_in_any_order(blobs: Blobs) -> None:
    """Wherever spans lie, beside each other or far apart, each comes back in its place."""
    data = large()
    put(blobs, "k", data)

    @given(spans=SPANS)
    @settings(max_examples=15, deadline=None)
    def check(spans: list[Span]) -> None:
        assert blobs.read_spans("k", spans) == [data[offset : offset + length] for offset, length in spans]

    check()


def test_a_span_that_is_not_there_is_missing(blobs: Blobs) -> None:
    """One span past the end, among good ones, raises BlobMissing; so does a key without bytes."""
    put(blobs, "k", b"0123456789")
    for key, spans in (("k", [(0, 1), (9, 2)]), ("k", [(0, 1), (1 << 20, 1)]), ("l", [(0, 1)])):
        with pytest.raises(BlobMissing):
            blobs.read_spans(key, spans)


def test_keys_are_named_by_age(blobs: Blobs) -> None:
    """Only what was last written before the given second is named."""
    put(blobs, "k")
    put(blobs, "l")
    assert list(blobs.keys(before=1_000_000)) == []
    assert sorted(blobs.keys(before=EVER)) == ["k", "l"]


def test_two_places_do_not_see_each_other(blobs: Blobs, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Two folders, or two prefixes of a bucket, have keys of their own."""
    put(blobs, "k")
    other: Blobs = DiskBlobs(folder=tmp_path / "other")
    if not isinstance(blobs, DiskBlobs):
        other = bucket_of(request.config).blobs(tmp_path)
    assert list(other.keys(before=EVER)) == []
    with pytest.raises(BlobMissing):
        other.open("k")


def test_scratch_is_a_local_file_without_a_name(blobs: Blobs, tmp_path: Path) -> None:
    """Scratch is written and read here, by its descriptor too, and leaves nothing, not even a key."""
    with blobs.scratch() as stream:
        stream.write(b"abc")
        stream.seek(0)
        assert stream.read() == b"abc"
        assert stream.fileno() > 0
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert list(blobs.keys(before=EVER)) == []


def test_another_process_is_handed_the_place(blobs: Blobs) -> None:
    """A place for bytes can be sent to a child process, and means the same there."""
    put(blobs, "k")
    assert content(pickle.loads(pickle.dumps(blobs)), "k") == b"abc"  # noqa: S301 - as a child process gets it
