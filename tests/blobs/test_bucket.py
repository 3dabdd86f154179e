"""What only a bucket can be asked: what becomes of lost replies, of one that fails, of parts that nobody ended."""

import errno
import pickle
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from obstore.exceptions import PermissionDeniedError

from batchmill.api.fault import is_broken
from batchmill.blobs.blobs import BlobMissing, BlobsAway
from batchmill.blobs.bucket import BucketBlobs
from batchmill.blobs.space import is_full
from blobs.put import EVER, content, put
from bucket import Bucket, bucket, toxic
from faults.toxic import Fault, Toxic

__all__ = ["bucket", "toxic"]

MANY = bytes(range(256)) * (80 << 10)  # 20 MiB: three parts
PASSING = [Fault.ERROR, Fault.SLOW_DOWN, Fault.RESET, Fault.LOST_REPLY]


@pytest.fixture
def blobs(toxic: Toxic, bucket: Bucket, tmp_path: Path) -> BucketBlobs:
    """A place behind the proxy, asked for half a second when it fails."""
    assert toxic.port
    return bucket.blobs(tmp_path, patience=0.5)


def test_few_bytes_are_one_request(blobs: BucketBlobs, toxic: Toxic) -> None:
    """A group commit's blob costs one PUT, and nothing else."""
    put(blobs, "k", bytes(4 << 20))
    assert [method for method, _ in toxic.requests] == ["PUT"]


@pytest.mark.parametrize("fault", PASSING, ids=[fault.value for fault in PASSING])
@pytest.mark.parametrize("data", [b"few", MANY], ids=["few", "many"])
def test_a_passing_fault_is_not_felt(blobs: BucketBlobs, toxic: Toxic, fault: Fault, data: bytes) -> None:
    """Whichever request of a write or a read fails once, done or not, the bytes are there and come back."""
    methods = ["HEAD", "POST", "PUT", "PUT", "POST", "GET", "DELETE"] if data is MANY else ["PUT", "GET", "DELETE"]
    for number, method in enumerate(dict.fromkeys(methods)):
        key = f"k{number}"
        toxic.once(fault, method=method)
        assert put(blobs, key, data).bytes == len(data)
        assert content(blobs, key) == data
        assert blobs.read_spans(key, [(1, 2)]) == [data[1:3]]
        for _ in range(2):  # an upload whose very beginning lost its reply is found when keys are named
            blobs.delete(key)
            left = list(blobs.keys(before=EVER))
        assert left == []
    assert toxic.met[fault] == len(set(methods))


def test_the_end_of_an_upload_may_lose_its_reply(blobs: BucketBlobs, toxic: Toxic) -> None:
    """The second try finds no upload to end; the bytes that are there are read, and are ours."""
    toxic.once(Fault.LOST_REPLY, method="POST", path="?uploadId=")
    assert put(blobs, "k", MANY).bytes == len(MANY)
    assert toxic.met[Fault.LOST_REPLY] == 1
    assert content(blobs, "k") == MANY


def test_a_lost_reply_over_other_bytes_is_no_success(blobs: BucketBlobs, toxic: Toxic) -> None:
    """What is under the key already is looked at: other bytes, as many even, are never taken for ours."""
    put(blobs, "k", b"first")
    toxic.once(Fault.LOST_REPLY, method="PUT")
    with pytest.raises(FileExistsError):
        put(blobs, "k", b"other")
    assert content(blobs, "k") == b"first"


@pytest.mark.parametrize("fault", [Fault.ERROR, Fault.SLOW_DOWN, Fault.RESET, Fault.HANG])
def test_a_bucket_that_is_away_is_said_to_be(bucket: Bucket, toxic: Toxic, tmp_path: Path, fault: Fault) -> None:
    """Every call raises BlobsAway after some patience: no full disk, no broken one; and all is well when it is back."""
    blobs = bucket.blobs(tmp_path, patience=0.1)
    put(blobs, "k")
    begun = blobs.writer("m")
    begun.write(MANY)
    toxic.fail(fault)
    calls = {
        "put": lambda: put(blobs, "l"),
        "many": lambda: put(blobs, "n", MANY),
        "open": lambda: blobs.open("k"),
        "read": lambda: blobs.read("k", offset=0, length=1),
        "spans": lambda: blobs.read_spans("k", [(0, 1)]),
        "delete": lambda: blobs.delete("k"),
        "keys": lambda: list(blobs.keys(before=EVER)),
    }
    if fault is Fault.HANG:  # each waits for its timeout: one stands for all
        calls = {"put": calls["put"]}
    for name, call in calls.items():
        began = time.monotonic()
        with pytest.raises(BlobsAway) as met:
            call()
        assert time.monotonic() - began < (7 if fault is Fault.HANG else 3), name
        assert not is_full(met.value)
        assert not is_broken(met.value)
        assert str(pickle.loads(pickle.dumps(met.value))) == str(met.value)  # noqa: S301 - a child process raises it
    toxic.heal()
    begun.discard()
    blobs.delete("l")  # it may be there
    assert list(blobs.keys(before=EVER)) == ["k"]
    assert content(blobs, "k") == b"abc"


def test_a_discard_does_not_fail(blobs: BucketBlobs, toxic: Toxic) -> None:
    """Parts that cannot be removed now are named later, and go by a delete."""
    writer = blobs.writer("k")
    writer.write(MANY)
    toxic.fail(Fault.RESET)
    writer.discard()
    toxic.heal()
    assert list(blobs.keys(before=EVER)) == ["k"]
    blobs.delete("k")
    assert list(blobs.keys(before=EVER)) == []


def test_unfinished_uploads_of_others_are_left_alone(bucket: Bucket, blobs: BucketBlobs, tmp_path: Path) -> None:
    """A discard or a delete removes the parts of its own key, of no longer one, and of no other prefix."""
    other = bucket.blobs(tmp_path)
    writers = [blobs.writer("k"), blobs.writer("k2"), other.writer("k")]
    for writer in writers:
        writer.write(MANY)
    writers[0].discard()
    assert list(blobs.keys(before=EVER)) == ["k2"]
    assert list(other.keys(before=EVER)) == ["k"]
    assert writers[2].finish().bytes == len(MANY)
    assert content(other, "k") == MANY
    writers[1].discard()


def test_refused_credentials_are_told_at_once(blobs: BucketBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another try does not mend is not tried again, and what is said names no key of ours."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionDeniedError("403\nDebug source: …")

    monkeypatch.setattr("obstore.head", refuse)
    began = time.monotonic()
    with pytest.raises(BlobsAway, match=r"403$"):
        blobs.open("k")
    assert time.monotonic() - began < 0.3


def test_a_bucket_that_is_not_there_is_away(bucket: Bucket, tmp_path: Path) -> None:
    """A write to no bucket at all waits for it, and says what is wrong."""
    blobs = BucketBlobs(url="s3://no-such-bucket/x", scratch=tmp_path, patience=0.2)
    with pytest.raises(BlobsAway, match="no such bucket"):
        put(blobs, "k")
    assert bucket.port


def test_memory_is_bounded_while_many_bytes_pass(blobs: BucketBlobs) -> None:
    """A hundred megabytes are written and read with some forty in memory."""
    before = _resident()
    most = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.01):
            most = max(most, _resident())

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        writer = blobs.writer("k")
        for number in range(100):
            writer.write(bytes([number]) * (1 << 20))
        writer.finish()
        with blobs.open("k") as stream:
            while stream.read(1 << 20):
                pass
    finally:
        done.set()
        watching.join()
        blobs.delete("k")
    assert most - before < 64 << 20


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


def test_a_link_gives_the_bytes_under_its_headers(blobs: BucketBlobs, toxic: Toxic) -> None:
    """A presigned URL needs no key, names the download as we want it named, and gives ranges."""
    put(blobs, "k", b"0123456789")
    disposition = "attachment; filename=\"a _.jsonl\"; filename*=UTF-8''a%20%E9%9B%A8.jsonl"
    url = blobs.presign("k", seconds=60, disposition=disposition, media_type="text/plain; charset=utf-8")
    assert url is not None
    assert url.startswith(toxic.url)
    with urllib.request.urlopen(url) as answer:  # noqa: S310 - our own server
        assert answer.read() == b"0123456789"
        assert answer.headers["Content-Disposition"] == disposition
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Range": "bytes=2-3"})) as answer:  # noqa: S310 - the same
        assert answer.read() == b"23"


def test_a_reader_of_a_deleted_key_hears_of_it(blobs: BucketBlobs) -> None:
    """A bucket keeps nothing for who has opened it: a read says that the bytes are missing, never gives fewer."""
    put(blobs, "k", MANY)
    with blobs.open("k") as stream:
        stream.read(1)
        blobs.delete("k")
        with pytest.raises(BlobMissing):
            stream.read()


def test_what_is_not_ours_is_not_named(bucket: Bucket, blobs: BucketBlobs, tmp_path: Path) -> None:
    """An object with a name that is no key of ours, or in a folder below, is never named, so never deleted."""
    inner = BucketBlobs(url=f"{blobs.url}/deeper", scratch=tmp_path)
    put(inner, "k")
    assert bucket.port
    assert list(blobs.keys(before=EVER)) == []


def test_scratch_that_has_no_room_is_a_full_disk(blobs: BucketBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scratch lies on the local disk: where that is full, it is no fault of the bucket's."""

    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(OSError, match="No space") as met:
        blobs.scratch()
    assert is_full(met.value)
