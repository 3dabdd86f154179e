"""Bytes in a bucket (S3, Google Cloud Storage, Azure): few bytes as one PUT, many as parts; read by ranges.

A bucket that is slow, refuses, resets or loses its replies is asked for some seconds, by obstore and then by us, since
obstore asks again for what may have been done only where that does no harm. Here nothing does: a key is minted for one
writer and never used again. So "there are bytes already" after a lost reply means our own, which are looked at.
"""

import hashlib
import io
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar, cast

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, GCSStore, S3Store, from_url

from batchmill.blobs.ahead import ReadAhead
from batchmill.blobs.blobs import BlobMissing, BlobsAway, Span, Written, check_key, is_key, merge, share_out
from batchmill.blobs.s3 import S3Requests, Unfinished

if TYPE_CHECKING:
    from obstore import WritableFile
    from obstore.store import ClientConfig, RetryConfig

T = TypeVar("T")
_Store = S3Store | GCSStore | AzureStore

_PART = 8 << 20  # bytes; S3 takes 10,000 parts, so 84 GB a key, and none but the last below 5 MiB
_PARTS_AT_ONCE = 2
_BUFFER = 1 << 20
_GAP = 64 << 10  # bytes: over so many it is read on; another request costs as much as some hundred thousand bytes
_PAGE = 1000  # keys an answer
_PATIENCE = 5.0  # seconds that a bucket which fails is asked for
_PAUSE = 0.2
_CONNECT_SECONDS = 3.0
_FEW_SECONDS = 5.0  # for an answer to a request of few bytes: a group commit must not hang longer
_MANY_SECONDS = 30.0  # for a part or a range: 2 Mbit/s
_REFUSED = (PermissionDeniedError, UnauthenticatedError)  # nothing that another try mends
_FAULTS = (BaseError, OSError)  # obstore's, and what its writer makes of them


class BucketBlobs:
    """Blobs below a prefix of a bucket, which must be there; `url` as `s3://bucket/prefix`, `gs://…`, `az://…`.

    Credentials, region and endpoint come by obstore's own chain: the environment, the machine's role. Scratch files lie
    in the local folder `scratch`. A failing bucket is asked again for
    `patience` seconds; after the try that is under way then, a call raises `BlobsAway`.
    """

    def __init__(self, *, url: str, scratch: Path, patience: float = _PATIENCE) -> None:
        self.url = url
        self._scratch = scratch
        self._patience = patience
        self._few = _store(url, seconds=_FEW_SECONDS, patience=patience)
        self._many = _store(url, seconds=_MANY_SECONDS, patience=patience)
        self._s3 = _requests(self._few, patience)
        self._prefix = f"{self._few.prefix}/" if self._few.prefix else ""
        self._left: dict[str, list[Unfinished]] = defaultdict(list)  # what `keys` found
        scratch.mkdir(parents=True, exist_ok=True)

    def __reduce__(self) -> tuple[Callable[[], "BucketBlobs"], tuple[()]]:
        """In another process it is opened anew."""
        return partial(BucketBlobs, url=self.url, scratch=self._scratch, patience=self._patience), ()

    @property
    def is_local(self) -> bool:
        """See `Blobs`."""
        return False

    def writer(self, key: str) -> "BucketWriter":
        """See `Blobs`. Up to some 40 MB are held in memory."""
        return BucketWriter(self, check_key(key))

    def open(self, key: str) -> io.BufferedReader:
        """See `Blobs`. Up to some 9 MB are held in memory. A key deleted meanwhile is `BlobMissing` in mid-read."""
        size = self._size(check_key(key))
        return io.BufferedReader(ReadAhead(fetch=partial(self._read, key), size=size), _BUFFER)

    def read(self, key: str, *, offset: int, length: int) -> bytes:
        """See `Blobs`."""
        return self._read(check_key(key), offset, length)

    def read_spans(self, key: str, spans: Sequence[Span]) -> list[bytes]:
        """See `Blobs`."""
        check_key(key)
        found = [b""] * len(spans)
        extents = [extent for extent in merge(spans, gap=_GAP) if extent.end > extent.begin]
        if extents:
            starts, ends = [extent.begin for extent in extents], [extent.end for extent in extents]
            many = self._ask(
                key,
                lambda: obstore.get_ranges(self._many, key, starts=starts, ends=ends, coalesce=0),
                needed=max(ends),
            )
            for data, extent in zip(many, extents, strict=True):
                share_out(_exactly(key, bytes(data), extent.end - extent.begin), extent, spans, found)
        return found

    def scratch(self) -> BinaryIO:
        """See `Blobs`."""
        return cast("BinaryIO", tempfile.TemporaryFile(dir=self._scratch, buffering=_BUFFER))

    def delete(self, key: str) -> None:
        """See `Blobs`. Of parts that nobody ended, those are removed that `keys` has named since."""
        with suppress(BlobMissing):
            self._ask(check_key(key), lambda: obstore.delete(self._few, key))
        for upload in self._left.pop(key, ()):
            self._abort(key, upload)

    def keys(self, *, before: float) -> Iterator[str]:
        """See `Blobs`. Half-written bytes are named on S3 only: elsewhere the bucket's own rule removes them."""
        pages = iter(obstore.list(self._few, chunk_size=_PAGE))
        while page := self._ask("a list", lambda: next(pages, None)):
            for found in page:
                if is_key(found["path"]) and found["last_modified"].timestamp() < before:
                    yield found["path"]
        self._left.clear()
        for upload in self._unfinished():
            key = upload.path.removeprefix(self._prefix)
            if is_key(key) and upload.begun < before:
                self._left[key].append(upload)
        yield from list(self._left)

    def presign(self, key: str, *, seconds: int, disposition: str, media_type: str) -> str | None:
        """See `Blobs`. Elsewhere than on S3 obstore signs no headers: then there is no URL."""
        if self._s3 is None:
            return None
        sign = partial(self._s3.link, seconds=seconds, disposition=disposition, media_type=media_type)
        return self._ask(key, lambda: sign(self._prefix + check_key(key)))

    def put(self, key: str, data: bytes) -> None:
        """Make few bytes durable under a key that has none; FileExistsError if it has others."""
        try:
            self._ask(key, lambda: obstore.put(self._few, key, data, mode="create", use_multipart=False))
        except AlreadyExistsError as there:
            if not self.holds(key, Written(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())):
                raise FileExistsError(f"a key is written once: {key}") from there
        except BlobMissing as missing:
            raise BlobsAway(f"there is no such bucket: {self.url}") from missing

    def begin(self, key: str) -> "WritableFile":
        """Begin to write many bytes; FileExistsError if the key has some."""
        with suppress(BlobMissing):
            self._size(key)
            raise FileExistsError(f"a key is written once: {key}")
        return obstore.open_writer(self._many, key, buffer_size=_PART, max_concurrency=_PARTS_AT_ONCE)

    def holds(self, key: str, written: Written) -> bool:
        """Say whether these bytes are under the key: all of them are read."""
        try:
            if self._size(key) != written.bytes:
                return False
            with self.open(key) as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest() == written.sha256
        except BlobMissing:
            return False

    def give_up(self, key: str) -> None:
        """Remove the parts of a key that were sent, if the bucket answers; else they are left for `keys` to name."""
        with suppress(BlobsAway):
            for upload in list(self._unfinished(key)):
                if upload.path == self._prefix + key:
                    self._abort(key, upload)

    def _unfinished(self, key: str = "") -> Iterator[Unfinished]:
        if self._s3 is not None:
            unfinished = self._s3.unfinished
            yield from self._ask(key, lambda: list(unfinished(self._prefix + key)))  # each try lists anew

    def _abort(self, key: str, upload: Unfinished) -> None:
        if self._s3 is not None:
            abort = self._s3.abort
            with suppress(BlobMissing):
                self._ask(key, lambda: abort(upload))

    def _size(self, key: str) -> int:
        return self._ask(key, lambda: obstore.head(self._few, key))["size"]

    def _read(self, key: str, offset: int, length: int) -> bytes:
        if length == 0:
            return b""
        end = offset + length
        data = self._ask(key, lambda: obstore.get_range(self._many, key, start=offset, end=end), needed=end)
        return _exactly(key, bytes(data), length)

    def _ask(self, key: str, call: Callable[[], T], *, needed: int = 0) -> T:
        """Return what a call returns that does no harm when it is made again.

        Raises:
            BlobMissing: the key has no bytes, or fewer than `needed`.
            BlobsAway: it failed for as long as our patience lasts.
            AlreadyExistsError: the key has bytes.
        """
        until = time.monotonic() + self._patience
        while True:
            try:
                return call()
            except FileNotFoundError as missing:
                raise BlobMissing(key) from missing
            except AlreadyExistsError:
                raise
            except _FAULTS as fault:
                if needed and self._is_shorter(key, needed):
                    raise BlobMissing(f"{key} has fewer than {needed} bytes") from fault
                if isinstance(fault, _REFUSED) or time.monotonic() >= until:
                    raise away(fault) from fault
            time.sleep(_PAUSE)

    def _is_shorter(self, key: str, needed: int) -> bool:
        """Say whether the key has fewer bytes: a bucket's answer to a range that is not there is a mere error."""
        with suppress(*_FAULTS):
            return obstore.head(self._few, key)["size"] < needed
        return False


class BucketWriter:
    """Bytes on their way to one key: held until they are many, then sent in parts."""

    def __init__(self, blobs: BucketBlobs, key: str) -> None:
        self._blobs = blobs
        self._key = key
        self._held = bytearray()
        self._digest = hashlib.sha256()
        self._bytes = 0
        self._parts: WritableFile | None = None
        self._is_over = False

    def write(self, data: bytes | memoryview) -> None:
        """See `BlobWriter`."""
        self._digest.update(data)
        self._bytes += len(data)
        if self._parts is None:
            self._held += data
            if len(self._held) < _PART:
                return
            self._parts = self._blobs.begin(self._key)
            data, self._held = bytes(self._held), bytearray()
        try:
            self._parts.write(bytes(data))
        except _FAULTS as fault:
            raise away(fault) from fault

    def finish(self) -> Written:
        """See `BlobWriter`."""
        written = Written(bytes=self._bytes, sha256=self._digest.hexdigest())
        if self._parts is None:
            self._blobs.put(self._key, bytes(self._held))
        else:
            try:
                self._parts.close()
            except _FAULTS as fault:  # of an end whose reply was lost, the second try says that there is nothing to end
                if not self._blobs.holds(self._key, written):
                    raise away(fault) from fault
        self._is_over = True
        return written

    def discard(self) -> None:
        """See `BlobWriter`."""
        if not self._is_over and self._parts is not None:
            self._parts = None
            self._blobs.give_up(self._key)
        self._is_over = True


def away(fault: Exception) -> BlobsAway:
    """Return a fault of the bucket as what it is to the rooms above."""
    return BlobsAway(f"the bucket does not do what it is asked for: {str(fault).partition(chr(10))[0]}")


def _exactly(key: str, data: bytes, length: int) -> bytes:
    if len(data) != length:
        raise BlobMissing(f"{key}: {len(data)} of {length} bytes")
    return data


def _store(url: str, *, seconds: float, patience: float) -> _Store:
    client, retry = _client(seconds), _retry(patience)
    if url.startswith("s3:"):  # a key goes by DELETE: not every server that speaks S3 knows the call for many
        return S3Store.from_url(url, disable_bulk_delete=True, client_options=client, retry_config=retry)
    return cast("_Store", from_url(url, client_options=client, retry_config=retry))


def _requests(store: _Store, patience: float) -> S3Requests | None:
    if not isinstance(store, S3Store):
        return None
    bucket = store.config["bucket"]
    return S3Requests(bucket=bucket, client_options=_client(_FEW_SECONDS), retry_config=_retry(patience))


def _client(seconds: float) -> "ClientConfig":
    """Return how requests are sent; the library reads its own variable only where nothing else is said."""
    plain = any(os.environ.get(f"{cloud}_ALLOW_HTTP", "").lower() in {"true", "1"} for cloud in ("AWS", "AZURE"))
    return {
        "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
        "timeout": timedelta(seconds=seconds),
        "allow_http": plain,
    }


def _retry(patience: float) -> "RetryConfig":
    backoff = {"init_backoff": timedelta(milliseconds=50), "max_backoff": timedelta(seconds=1), "base": 2}
    return cast("RetryConfig", {"max_retries": 100, "retry_timeout": timedelta(seconds=patience), "backoff": backoff})
