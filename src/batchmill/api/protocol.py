"""How HTTP/1.1 is let in: uvicorn's protocol within bounds of size and time, each refusal in our own envelope.

uvicorn and httptools are strict about framing, but take a head of any size, wait for one for ever, and hold an answer
for as long as nobody reads it (reliability 4.6). What is refused here never becomes a request: no key is looked for.
"""

import asyncio
import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from batchmill.api.answer import error_answer, request_id_headers
from batchmill.spec import errors
from batchmill.spec.errors import ApiError
from batchmill.spec.limits import Limits

_HOST = re.compile(rb"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


class BoundedProtocol(HttpToolsProtocol):
    """One connection of a client; uvicorn makes one for each."""

    def __init__(self, *, limits: Limits, **uvicorns: Any) -> None:  # noqa: ANN401 - uvicorn's own arguments
        super().__init__(**uvicorns)
        self._limits = limits
        self._in_head = False  # a head has begun and is not over
        self._head_bytes = 0  # of the last head, and of the trailers of its body
        self._unseen = 0  # bytes since the parser last told of anything: it may hold all of them
        self._refusal: ApiError | None = None
        self._head_due: asyncio.TimerHandle | None = None
        self._unsent_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        for due in (self._head_due, self._unsent_due):
            if due is not None:
                due.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless it is more than a head may have."""
        if not self._answering() and self._head_due is None:
            self._expect_head()
        self._unseen += len(data)
        super().data_received(data)
        if self._unseen > self._limits.max_head_bytes and not self.transport.is_closing():
            self._refuse(errors.head_too_large(self._limits.max_head_bytes))

    def on_message_begin(self) -> None:
        """Note that a head begins."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Take a piece of the request's target.

        Raises:
            ApiError: 414, it is too long (reliability A32).
        """
        super().on_url(url)
        if len(self.url) > self._limits.max_target_bytes:
            raise self._refused(errors.target_too_long(self._limits.max_target_bytes))
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header. One that comes behind a body is dropped: it is none of the request's (RFC 9110, 6.5.1).

        Raises:
            ApiError: 431, there are too many bytes of them.
        """
        self._count(len(name) + len(value) + len(b": \r\n"))
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Let the request begin.

        Raises:
            ApiError: 400, its head leaves open what is meant.
        """
        upgrade = self.parser.should_upgrade()
        fault = head_fault(version=self.parser.get_http_version(), headers=self.headers, upgrade=upgrade)
        if fault is not None:
            raise self._refused(errors.invalid_request(fault))
        self._in_head, self._unseen = False, 0
        if self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body, which is the application's to bound."""
        self._unseen = 0
        super().on_body(body)

    def on_response_complete(self) -> None:
        """Go on to the next request, but see to it that this answer leaves."""
        super().on_response_complete()
        self._watch_unsent()

    def pause_writing(self) -> None:
        """Hold the answer: the client does not read as fast as it comes."""
        super().pause_writing()
        self._watch_unsent()

    def resume_writing(self) -> None:
        """Go on with the answer."""
        super().resume_writing()
        self._watch_unsent()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's own words; ours say more
        """Refuse what the parser, or one of the calls above, did not take."""
        self._refuse(self._refusal or errors.invalid_request("This is not a valid HTTP/1.1 request."))

    def _count(self, size: int) -> None:
        self._unseen = 0
        self._head_bytes += size
        if self._head_bytes > self._limits.max_head_bytes:
            raise self._refused(errors.head_too_large(self._limits.max_head_bytes))

    def _refused(self, error: ApiError) -> ApiError:
        """Keep why the parser is stopped: it does not hand an exception on."""
        self._refusal = error
        return error

    def _answering(self) -> bool:
        return bool(self.cycle) and not self.cycle.response_complete

    def _refuse(self, error: ApiError) -> None:
        """Answer and close; but never in the middle of another answer, whose reader would take it for a part."""
        if self._answering() and not self.cycle.more_body:  # what is wrong came behind a request that was whole
            self.flow.pause_reading()
            self.shutdown()  # closes behind the last answer
        elif self._answering() and (self.cycle.response_started or self.pipeline):
            self.transport.close()
        else:
            self.transport.write(self._written(error))
            self.transport.close()

    def _written(self, error: ApiError) -> bytes:
        answer = error_answer(error)
        headers = [
            *self.server_state.default_headers,
            *answer.raw_headers,
            *request_id_headers(),
            (b"connection", b"close"),
        ]
        status = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n".encode()
        return status + b"".join(name + b": " + value + b"\r\n" for name, value in headers) + b"\r\n" + answer.body

    def _expect_head(self) -> None:
        self._head_due = self.loop.call_later(self._limits.head_seconds, self._head_is_late)

    def _head_is_late(self) -> None:
        """Close: nothing came, or what came was no whole head. Bytes that trickle in do not put this off."""
        self._head_due = None
        if self._in_head:
            self._refuse(errors.request_timeout("The request's headers did not arrive in time."))
        else:
            self.transport.close()

    def _watch_unsent(self) -> None:
        """Look again later, if anything waits for the client to read on."""
        if self._unsent_due is not None:
            self._unsent_due.cancel()
        self._unsent_due = None
        if left := self.transport.get_write_buffer_size():
            self._unsent_due = self.loop.call_later(self._limits.answer_idle, self._cut_if_not_below, left)

    def _cut_if_not_below(self, left: int) -> None:
        if self.transport.get_write_buffer_size() >= left:
            self.transport.abort()
        else:
            self._watch_unsent()


def head_fault(*, version: str, headers: Sequence[tuple[bytes, bytes]], upgrade: bool) -> str | None:
    """Return what is wrong with a head whose framing the parser took (reliability 4.6); header names in lower case."""
    if version not in {"1.0", "1.1"}:
        return "Only HTTP/1.1 and HTTP/1.0 are spoken here."
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1 or any(_HOST.fullmatch(host) is None for host in hosts) or (version == "1.1" and not hosts):
        return "A request has one Host header, which is host or host:port."
    codings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
    if codings and (version == "1.0" or codings != [b"chunked"]):  # RFC 9112, 6.1
        return "The only Transfer-Encoding is chunked, of HTTP/1.1."
    if upgrade and (codings or any(name == b"content-length" and value != b"0" for name, value in headers)):
        return "A request with a body cannot ask for an upgrade (curl --http2 does): send it as HTTP/1.1."
    return None
