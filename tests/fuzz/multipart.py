"""Fuzz target: any bytes as the form of an upload; its file is kept as it came, or the client is told why not."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import atheris

# What is reached there guides what comes next.
with atheris.instrument_imports(include=["batchmill", "python_multipart"]):
    from batchmill.api.upload import receive_upload
    from batchmill.blobs.disk import DiskBlobs
    from batchmill.spec.errors import ApiError
    from batchmill.spec.limits import OPEN

_LIMITS = replace(OPEN, max_input_bytes=512)
_PURPOSE = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
_FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n'
# The bytes stand for the whole form, or for one place of a good one: so that all of the reader is reached.
_PLACES = (
    (b"", b""),
    (b"", _PURPOSE + _FILE + b"\r\nx\r\n--b--\r\n"),
    (_PURPOSE + _FILE, b"\r\n\r\nx\r\n--b--\r\n"),
    (_PURPOSE + _FILE + b"\r\n", b"\r\n--b--\r\n"),
    (_PURPOSE + b"--b\r\nContent-Disposition: ", b"\r\n\r\nx\r\n--b--\r\n"),
    (_PURPOSE + _FILE + b"\r\nx\r\n--b--\r\n", b""),
)


class Target:
    """An upload into a real folder, without the fsyncs."""

    def __init__(self, folder: Path) -> None:
        self._blobs = DiskBlobs(folder=folder, fsync=lambda _: None)
        self._loop = asyncio.new_event_loop()

    def one_input(self, data: bytes) -> None:
        """Upload once; the first two bytes say where the others stand and in what pieces they come."""
        before, after = _PLACES[data[0] % len(_PLACES)] if data else (b"", b"")
        size = 1 + data[1] if len(data) > 1 else 1
        self._loop.run_until_complete(self._upload(before + data[2:] + after, size))

    async def _upload(self, form: bytes, size: int) -> None:
        try:
            stream = _pieces(form, size)
            received = await receive_upload(
                stream=stream, boundary=b"b", blobs=self._blobs, key="upload_1", limits=_LIMITS
            )
        except ApiError as told:
            assert told.status == 400  # noqa: PT017 - no test: nothing else may come of it
            return
        kept = self._blobs.read("upload_1", offset=0, length=received.written.bytes)
        self._blobs.delete("upload_1")
        assert 0 < len(kept) <= _LIMITS.max_input_bytes
        assert kept in form
        assert (received.purpose, received.filename[-6:]) == ("batch", ".jsonl")


async def _pieces(form: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(form), size):
        yield form[at : at + size]


if __name__ == "__main__":
    import sys

    with tempfile.TemporaryDirectory() as folder:
        atheris.Setup(sys.argv, Target(Path(folder)).one_input)
        atheris.Fuzz()
