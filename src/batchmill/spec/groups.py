"""Failed lines in groups of one cause: status, code, and the message without what differs from line to line."""

import re
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

import msgspec

_SHOWN = 200  # characters of a message
_EXAMPLE = 1_000  # characters of one as it came
_READ = 2_000  # characters of it that are looked at
_ID = re.compile(r"[0-9a-f]{16}")
_CACHED = 1_024  # texts whose group is kept: a fault says the same of many lines
# What differs from line to line, in the order in which it is looked for; what has a digit in it is a number or an id.
# Each is looked for in a time that grows with the message alone: what is in it, anybody may have written.
_VARYING = (
    (re.compile(r"(?<!\w)(['\"`])(?:(?!\1).){1,400}\1(?!\w)", re.DOTALL), "'…'"),  # no apostrophe opens a quotation
    (re.compile(r"(?<![\w.+/-])([.+/-]*+)(?:[^\W\d]|[.+/-])*+\d[\w.+/-]*\b"), r"\1N"),
    (re.compile(r"\s+"), " "),
)


class _Error(msgspec.Struct, gc=False):
    code: msgspec.Raw = msgspec.Raw(b"null")
    type: msgspec.Raw = msgspec.Raw(b"null")
    message: msgspec.Raw = msgspec.Raw(b"null")


class _Response(msgspec.Struct, gc=False):
    status_code: int
    body: msgspec.Raw = msgspec.Raw(b"null")


class _Failed(msgspec.Struct, gc=False):
    custom_id: str
    response: _Response | None = None
    error: _Error | None = None


class _Body(msgspec.Struct, gc=False):
    error: msgspec.Raw = msgspec.Raw(b"null")
    detail: msgspec.Raw = msgspec.Raw(b"null")
    message: msgspec.Raw = msgspec.Raw(b"null")
    code: msgspec.Raw = msgspec.Raw(b"null")


_FAILED = msgspec.json.Decoder(_Failed)
_BODY = msgspec.json.Decoder(_Body)
_ERROR = msgspec.json.Decoder(_Error)
_STRING = msgspec.json.Decoder(str)
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """A cause: `id` is the same for the same cause, in every batch.

    `status` is the backend's HTTP status, None where there was no answer; `code` is in its words, or ours.
    """

    id: str
    status: int | None
    code: str | None
    message: str


class Cause(NamedTuple):
    """Why a line failed: its group, and as an `example` of it the message as it came, or where it is long its start."""

    custom_id: str
    group: ErrorGroup
    example: str


def is_group(text: str) -> bool:
    """Say whether this may be the id of a group."""
    return _ID.fullmatch(text) is not None


def group_of(text: bytes) -> Cause:
    """Return the custom_id of a line of an error file, its group, and what it says itself.

    Bodies of OpenAI's shape (`error`), of FastAPI's (`detail`) and flat ones (`message`) are read; of any other the
    body itself is the message.

    Raises:
        ValueError: it is no line of a result file.
    """
    try:
        failed = _FAILED.decode(text)
    except _UNREADABLE as fault:
        raise ValueError("not a line of a result file") from fault
    if failed.error is not None:
        status, code, message = None, bytes(failed.error.code), bytes(failed.error.message)
    elif failed.response is None:
        status, code, message = None, b"null", b"null"
    else:
        status, (code, message) = failed.response.status_code, _told(bytes(failed.response.body))
    said = _text(message) or ""
    return Cause(failed.custom_id, _group(status, _text(code), said), said[:_EXAMPLE])


def _told(body: bytes) -> tuple[bytes, bytes]:
    """Return the code and the message of a reply's body, as JSON."""
    try:
        flat = _BODY.decode(body)
    except _UNREADABLE:
        return b"null", body
    nested, null = bytes(flat.error), b"null"
    if nested.startswith(b"{"):
        error = _ERROR.decode(nested)
        code = next((raw for raw in (bytes(error.code), bytes(error.type)) if raw != null), null)
        return code, bytes(error.message) if bytes(error.message) != null else nested
    told = (nested, bytes(flat.message), bytes(flat.detail))
    return bytes(flat.code), next((raw for raw in told if raw != null), body)


@lru_cache(_CACHED)
def _group(status: int | None, code: str | None, message: str) -> ErrorGroup:
    for pattern, instead in _VARYING:
        message = pattern.sub(instead, message)
    message = message.strip()[:_SHOWN]
    digest = blake2b(msgspec.json.encode([status, code, message]), digest_size=8)
    return ErrorGroup(digest.hexdigest(), status, code, message)


def _text(raw: bytes) -> str | None:
    """Return a JSON value as words: a string is itself, null is None; a NUL is shown, since no database keeps one."""
    if raw.strip() == b"null":
        return None
    try:
        text = _STRING.decode(raw)
    except _UNREADABLE:  # it is none, or has half a character pair in it: then the JSON itself is the words
        text = raw[:_READ].decode(errors="replace")
    return text[:_READ].replace("\0", "\N{REPLACEMENT CHARACTER}")
