"""Requests that come inside the order for a batch: each becomes a line of a File, with the bytes that it came with.

What is checked here is the shape, so that there are lines at all; the rules for lines are those of every File.
"""

import codecs
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Raw
from msgspec.structs import astuple

from batchmill.spec import errors
from batchmill.spec.limits import Limits

_NOTHING = Raw(b"")
_PIECE = 1 << 20  # bytes
_ORDER = ("completion_window", "endpoint", "metadata", "output_expires_after")
_BREAKS = bytes.maketrans(b"\r\n", b"  ")


class _Body(msgspec.Struct, gc=False):
    requests: Raw = _NOTHING
    completion_window: Raw = _NOTHING
    endpoint: Raw = _NOTHING
    metadata: Raw = _NOTHING
    output_expires_after: Raw = _NOTHING


class _Request(msgspec.Struct, gc=False):
    custom_id: Raw = _NOTHING
    method: Raw = _NOTHING
    url: Raw = _NOTHING
    body: Raw = _NOTHING


_BODY = msgspec.json.Decoder(_Body)
_REQUEST = msgspec.json.Decoder(_Request)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inline:
    """A body of which the shape is right: the other members of the order, decoded, and the requests as they came."""

    members: Mapping[str, object]
    requests: Sequence[Raw]

    def lines(self, endpoint: str) -> Iterator[bytes]:
        """Yield the lines; a method or a url that is left out is filled in, in front of the rest.

        Line breaks stand between tokens only, where a space is as good: JSON allows none inside a string.
        """
        for request in self.requests:
            found, text = _REQUEST.decode(request), bytes(request).translate(_BREAKS)
            method = b"" if found.method else b'"method":"POST",'
            url = b"" if found.url else b'"url":%b,' % msgspec.json.encode(endpoint)
            yield b"{%b%b%b\n" % (method, url, text[1:])


class InlineReader:
    """Reads such bodies, whatever is in them, in little more memory than they have bytes."""

    def __init__(self, *, limits: Limits) -> None:
        self._limits = limits
        # An array as a struct with so many members: what has more is refused by the decoder before it is held.
        members: list[Any] = [(f"r{place}", Raw, _NOTHING) for place in range(limits.max_inline_requests)]
        array = msgspec.defstruct("_Array", members, array_like=True, forbid_unknown_fields=True, gc=False)
        self._array = msgspec.json.Decoder(array)

    def read(self, body: bytes | bytearray) -> Inline:
        """Return what a body holds.

        Raises:
            ApiError: its shape is not right; a request is named by its place, `requests[3].custom_id`.
            MsgspecError, UnicodeDecodeError, RecursionError: it is no JSON in UTF-8 that can be read.
        """
        _check_utf8(body)
        try:
            found = _BODY.decode(body)
        except msgspec.ValidationError as fault:
            raise errors.invalid_type(None, "a JSON object") from fault
        order = {name: raw for name in _ORDER if (raw := getattr(found, name))}
        if sum(map(len, order.values())) > self._limits.max_json_body:
            raise errors.too_big("The order beside the requests", self._limits.max_json_body)
        requests = self._requests(found.requests)
        for place, request in enumerate(requests):
            _check(request, f"requests[{place}]")
        return Inline(members={name: msgspec.json.decode(raw) for name, raw in order.items()}, requests=requests)

    def _requests(self, raw: Raw) -> Sequence[Raw]:
        if not raw:
            raise errors.missing_parameter("requests")
        if bytes(memoryview(raw)[:1]) != b"[":
            raise errors.invalid_type("requests", "an array")
        most = self._limits.max_inline_requests
        try:
            every = astuple(self._array.decode(raw))
        except msgspec.ValidationError as fault:
            message = f"'requests' may hold at most {most} requests: upload a file for more."
            raise errors.invalid_value("requests", message) from fault
        if not every[0]:
            raise errors.invalid_value("requests", "'requests' is empty: give at least one.")
        return [request for request in every if request]


def _check(request: Raw, param: str) -> None:
    """Raise for a request that would be no line: the four members, each of its own type, are what a line is made of."""
    try:
        found = _REQUEST.decode(request)
    except msgspec.ValidationError as fault:
        raise errors.invalid_type(param, "an object") from fault
    if not found.custom_id:
        raise errors.missing_parameter(f"{param}.custom_id")
    if not found.body:
        raise errors.missing_parameter(f"{param}.body")
    if not _begins(found.body, b"{"):
        raise errors.invalid_type(f"{param}.body", "an object")
    for name in ("custom_id", "method", "url"):
        value: Raw = getattr(found, name)
        if value and not _begins(value, b'"'):
            raise errors.invalid_type(f"{param}.{name}", "a string")


def _begins(value: Raw, with_: bytes) -> bool:
    return bytes(memoryview(value)[:1]) == with_


def _check_utf8(body: bytes | bytearray) -> None:
    """Raise for what is not UTF-8: the decoder does not look at what it leaves as it is. Piece by piece: no copy."""
    if body.isascii():
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    with memoryview(body) as view:
        for at in range(0, len(view), _PIECE):
            decoder.decode(view[at : at + _PIECE], final=at + _PIECE >= len(view))
