"""Streams a multipart upload into a blob: counted and hashed on the way, never held whole."""

import re
import unicodedata
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from batchmill.api.maker import in_thread
from batchmill.blobs.blobs import Blobs, BlobWriter, Written
from batchmill.spec import errors
from batchmill.spec.create import expires_after_seconds
from batchmill.spec.fingerprint import upload_fingerprint
from batchmill.spec.limits import Limits

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks  # a type only, not there at run time

_TEXT_BYTES = 1024  # the longest value of a text part: all of ours are words and numbers
_PARTS = 16  # reliability A9
_PART_HEADERS = 8  # A10
_PART_HEADER_BYTES = 4224  # each
_BUFFER = 1 << 20  # bytes handed to the writing thread at once
_FILENAME = 255  # bytes
_FRAME = 1 << 20  # bytes that a form may have beyond what its file may: what stands around the parts counts, too
_AS_IT_IS = frozenset({b"binary", b"8bit", b"7bit"})  # RFC 7578, 4.7: deprecated, and nobody decodes the others
_QUOTED = re.compile(rb'"(?:\\.|[^"\\])*+"?')  # what lacks its end runs to the end, so that this is linear
_OWN_NAME = re.compile(rb";[ \t]*(name|filename)[ \t]*=")
_LINE_BREAKERS = frozenset({"Cc", "Zl", "Zp"})  # control characters and line separators, by their Unicode category


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A finished upload: what the client says of it, and its durable bytes."""

    purpose: str
    filename: str
    expires_after: int | None
    written: Written

    def fingerprint(self) -> str:
        """Return what makes another upload the same as this one."""
        return upload_fingerprint(
            filename=self.filename,
            purpose=self.purpose,
            expires_after=self.expires_after,
            sha256=self.written.sha256,
        )


@dataclass(slots=True)
class _Parts:
    """What the parser has found so far."""

    limits: Limits
    texts: dict[str, bytearray] = field(default_factory=dict)
    filename: str | None = None
    file_bytes: int = 0
    waiting: bytearray = field(default_factory=bytearray)  # of the file, not written yet
    ended: bool = False
    _count: int = 0
    _headers: dict[bytes, bytes] = field(default_factory=dict)
    _name: bytes = b""
    _value: bytes = b""
    _sink: Callable[[bytes], None] | None = None

    def callbacks(self) -> "MultipartCallbacks":
        """Return what python-multipart calls, by its names."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._count += 1
        if self._count > _PARTS:
            raise errors.invalid_request(f"The form has more than {_PARTS} parts.")
        self._headers = {}
        self._name = self._value = b""

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers.setdefault(self._name.lower(), self._value)
        self._name = self._value = b""

    def _headers_finished(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"")
        _, options = parse_options_header(disposition)
        name = _text(options, b"name")
        if _names_twice(disposition):
            raise errors.invalid_value(name[: errors.CLIP] or "file", "A part has one name, and its file one filename.")
        if self._headers.get(b"content-transfer-encoding", b"binary").strip().lower() not in _AS_IT_IS:
            raise errors.invalid_value(name[: errors.CLIP] or "file", "Send each part as it is: no transfer encoding.")
        if name == "expires_after":
            message = "Send 'expires_after[anchor]' and 'expires_after[seconds]' as two parts."
            raise errors.invalid_value(name, message)
        if name == "file":
            self._begin_file(_text(options, b"filename"))
            return
        if name in self.texts:
            raise errors.invalid_value(name[: errors.CLIP], f"The form has the part {errors.clip(name)} twice.")
        text = self.texts[name] = bytearray()
        self._sink = lambda data: self._take_text(name, text, data)

    def _begin_file(self, filename: str) -> None:
        if self.filename is not None:
            raise errors.invalid_value("file", "The form has more than one file.")
        if not filename:
            raise errors.invalid_value("file", "The part 'file' has no filename.")
        if len(filename.encode()) > _FILENAME or any(unicodedata.category(c) in _LINE_BREAKERS for c in filename):
            raise errors.invalid_value("file", f"A filename has at most {_FILENAME} bytes and no control characters.")
        self.filename = filename
        self._sink = self._take_file

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._sink is not None:
            self._sink(data[start:end])

    def _take_text(self, name: str, text: bytearray, data: bytes) -> None:
        text += data
        if len(text) > _TEXT_BYTES:
            param = name[: errors.CLIP]
            raise errors.invalid_value(param, f"The part {errors.clip(name)} is longer than {_TEXT_BYTES} bytes.")

    def _take_file(self, data: bytes) -> None:
        self.file_bytes += len(data)
        if self.file_bytes > self.limits.max_input_bytes:
            raise errors.too_big("The file", self.limits.max_input_bytes, "file")
        self.waiting += data  # not kept as it comes: a file of almost-boundaries comes by the eleven bytes

    def _end(self) -> None:
        self.ended = True

    def text(self, name: str) -> str | None:
        """Return a text part's value."""
        return self.texts[name].decode(errors="replace") if name in self.texts else None


def form_boundary(content_type: str) -> bytes:
    """Return the boundary that a Content-Type names.

    Raises:
        ApiError: it is no form, or its boundary is missing or too long.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 1 <= len(boundary) <= 70:  # noqa: PLR2004 - RFC 2046, 5.1.1
        raise errors.invalid_value("file", "Send the file as multipart/form-data with a boundary.")
    return boundary


def refuse_long_form(size: int, limits: Limits) -> None:
    """Raise the 400 for a form of so many bytes, declared or received, that its file must be too large (A11, A15)."""
    if size > limits.max_input_bytes + _FRAME:
        raise errors.too_big("The file", limits.max_input_bytes, "file")


async def receive_upload(
    *, stream: AsyncIterator[bytes], boundary: bytes, blobs: Blobs, key: str, limits: Limits
) -> Upload:
    """Receive the form of `POST /v1/files` (contract a.1) and make its file durable under the key, or leave nothing.

    The parts may come in any order (Node sends the file first), so the file is written before its purpose is known.

    Raises:
        ApiError: anything about the form is not as the contract wants it.
        ClientDisconnect: the client went away.
        OSError: the bytes could not be made durable.
    """
    writer = await in_thread(lambda: blobs.writer(key))
    try:
        parts = await _read_form(stream, boundary, writer, limits)
        purpose, filename, expires_after = _judge(parts, limits)
        written = await in_thread(writer.finish)
    except BaseException:
        await in_thread(writer.discard)
        raise
    return Upload(purpose=purpose, filename=filename, expires_after=expires_after, written=written)


async def _read_form(stream: AsyncIterator[bytes], boundary: bytes, writer: BlobWriter, limits: Limits) -> _Parts:
    parts = _Parts(limits)
    parser = MultipartParser(
        boundary, parts.callbacks(), max_header_count=_PART_HEADERS, max_header_size=_PART_HEADER_BYTES
    )
    size = 0
    async for chunk in stream:
        size += len(chunk)
        refuse_long_form(size, limits)
        try:
            parser.write(chunk)
        except MultipartParseError as fault:
            raise errors.invalid_request(f"The form is not valid multipart/form-data: {fault}.") from fault
        if len(parts.waiting) >= _BUFFER:
            await in_thread(lambda: _flush(parts.waiting, writer))
    await in_thread(lambda: _flush(parts.waiting, writer))
    return parts


def _names_twice(disposition: bytes) -> bool:
    """Tell whether a part has two names or filenames, of which whoever looks before us may take the other (A5)."""
    names = _OWN_NAME.findall(_QUOTED.sub(b'""', disposition.lower()))
    return len(names) > len(set(names))


def _text(options: Mapping[bytes, bytes], name: bytes) -> str:
    return options.get(name, b"").decode(errors="replace")


def _flush(waiting: bytearray, writer: BlobWriter) -> None:
    with memoryview(waiting) as view:
        writer.write(view)
    waiting.clear()


def _judge(parts: _Parts, limits: Limits) -> tuple[str, str, int | None]:
    """Return purpose, filename and time to live, if all of the form is as it must be."""
    if not parts.ended:
        raise errors.invalid_request("The form ends in the middle of a part.")
    purpose = parts.text("purpose")
    if purpose is None:
        raise errors.missing_parameter("purpose")
    if purpose != "batch":
        raise errors.invalid_value("purpose", f"'purpose' must be 'batch', not {errors.clip(purpose)}.")
    if parts.filename is None:
        raise errors.missing_parameter("file")
    if not parts.filename.endswith(limits.extension):
        message = f"The filename must end in {limits.extension}, not be {errors.clip(parts.filename)}."
        raise errors.invalid_value("file", message)
    if parts.file_bytes == 0:
        raise errors.invalid_value("file", "The file is empty.")
    return purpose, parts.filename, _expires_after(parts, limits)


def _expires_after(parts: _Parts, limits: Limits) -> int | None:
    anchor, seconds = parts.text("expires_after[anchor]"), parts.text("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor is None:
        raise errors.missing_parameter("expires_after[anchor]")
    if anchor != "created_at":
        raise errors.invalid_value("expires_after[anchor]", "'expires_after[anchor]' must be 'created_at'.")
    if seconds is None:
        raise errors.missing_parameter("expires_after[seconds]")
    number = int(seconds) if seconds.isascii() and seconds.isdigit() and len(seconds) < 10 else None  # noqa: PLR2004 - digits
    return expires_after_seconds(number, "expires_after[seconds]", limits)
