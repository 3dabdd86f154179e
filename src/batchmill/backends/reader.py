"""The replies of one HTTP/1.1 connection, read from its bytes; no I/O. A hostile server fills no memory with them."""

from collections.abc import Callable
from typing import Final

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from batchmill.backends.backend import Reply
from batchmill.backends.transport import coding_refused, retry_after_seconds
from batchmill.schedule.retry import Fault

__all__ = ["ReplyReader"]

_HEAD_BYTES: Final = 1 << 16  # of headers, and of anything else that brings no body: interim replies, trailers
_HEADER_COST: Final = 64  # a header is counted as so much longer than it is: never over 1,023 of them
_READ: Final = frozenset((b"content-length", b"content-encoding", b"transfer-encoding", b"retry-after"))
_LOWEST_STATUS: Final = 100
_SWITCHING: Final = 101  # hands the connection to another protocol
_LOWEST_FINAL: Final = 200


class _Refused(Exception):  # noqa: N818 - no error: it stops the parser
    """Stops the parser: what comes is not to be read any further."""


class ReplyReader:
    """Reads one reply after another; llhttp checks the grammar, strictly (no folded headers, no bare LF).

    Attributes:
        heard: A byte of this reply has come.
        keeps: After the whole reply the connection can carry another request.
    """

    __slots__ = (
        "_body",
        "_headers",
        "_max_reply_bytes",
        "_now",
        "_parser",
        "_refused",
        "_reply",
        "_room",
        "_size",
        "_status",
        "heard",
        "keeps",
    )

    def __init__(self, *, now: Callable[[], float], max_reply_bytes: int) -> None:
        """Begin with nothing asked.

        Args:
            now: Unix time in seconds, for a Retry-After that is a date.
            max_reply_bytes: A longer body is `Fault.OVERSIZE` as soon as that is known.
        """
        self._now = now
        self._max_reply_bytes = max_reply_bytes
        self._parser = HttpResponseParser(self)
        self._headers: dict[bytes, bytes] = {}
        self._refused: Reply | None = None
        self.begin()

    def begin(self) -> None:
        """Get ready for the reply to the next request; the last one was whole."""
        self.heard = False
        self.keeps = False
        self._headers.clear()
        self._status = 0  # until its head is whole
        self._body: bytes | bytearray = b""
        self._size = 0
        self._room = _HEAD_BYTES
        self._reply: Reply | None = None

    def feed(self, data: bytes) -> Reply | None:
        """Read on; gives the Reply once it is whole or cannot become one (then `keeps` is False)."""
        self.heard = True
        size = self._size
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            self.keeps = False
            return self._reply or self._refused or Reply(fault=Fault.GARBLED, detail="the reply is not valid HTTP")
        if self._reply is None and self._size == size:
            self._room -= len(data)  # an endless header, chunk extension or trailer is never told to us
            if self._room < 0:
                return _too_long()
        return self._reply

    def end(self, *, lost: bool) -> Reply:
        """Say what the reply is after the server's last byte; `lost` is a connection that did not end in order."""
        self.keeps = False
        if not self._status:
            return Reply(fault=Fault.RESET, detail="the connection was lost before the reply came")
        if lost or b"content-length" in self._headers or b"transfer-encoding" in self._headers:
            return Reply(fault=Fault.GARBLED, detail="the reply broke off")
        return self._whole()

    def _whole(self) -> Reply:
        wait = self._headers.get(b"retry-after")
        return Reply(
            status=self._status,
            body=bytes(self._body),  # no copy, where it came in one piece
            retry_after=None if wait is None else retry_after_seconds(wait.decode("latin-1"), now=self._now()),
        )

    def _refuse(self, fault: Fault, detail: str) -> None:
        self._refused = Reply(fault=fault, detail=detail)
        raise _Refused

    # What the parser calls.

    def on_message_begin(self) -> None:
        """A reply begins. After a whole one it is one that nobody asked for: it is not read, whatever it is."""
        if self._reply is not None:
            raise _Refused

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or one trailer, of which nothing is believed."""
        self._room -= len(name) + len(value) + _HEADER_COST
        if self._room < 0:
            self._refused = _too_long()
            raise _Refused
        name = name.lower()
        if name in _READ and not self._status:
            before = self._headers.get(name)
            self._headers[name] = value if before is None else before + b", " + value

    def on_headers_complete(self) -> None:
        """A head is whole: that of the reply, or of an interim one (1xx) before it."""
        status = self._parser.get_status_code()
        headers = self._headers
        if status < _LOWEST_FINAL:
            if status < _LOWEST_STATUS or status == _SWITCHING:
                self._refuse(Fault.GARBLED, f"it answered with status {status}")
            self._room -= _HEADER_COST
            headers.clear()
            return
        self._status = status
        self.keeps = self._parser.should_keep_alive()
        if int(headers.get(b"content-length", 0)) > self._max_reply_bytes:
            self._too_large()
        if b"content-encoding" in headers or b"transfer-encoding" in headers:
            content = headers.get(b"content-encoding", b"").decode("latin-1")
            transfer = headers.get(b"transfer-encoding", b"").decode("latin-1")
            if why := coding_refused(content=content, transfer=transfer):
                self._refuse(Fault.GARBLED, why)

    def on_body(self, piece: bytes) -> None:
        """A piece of the body."""
        self._size += len(piece)
        if self._size > self._max_reply_bytes:
            self._too_large()
        if not self._body:
            self._body = piece
        elif isinstance(self._body, bytearray):
            self._body += piece
        else:  # a list of pieces would be many times as large, where each holds a byte or two
            self._body = bytearray(self._body + piece)

    def on_message_complete(self) -> None:
        """The reply is whole, or an interim one is."""
        if self._status:
            self._reply = self._whole()

    def _too_large(self) -> None:
        self._refuse(Fault.OVERSIZE, f"the reply is longer than {self._max_reply_bytes} bytes")


def _too_long() -> Reply:
    return Reply(fault=Fault.GARBLED, detail=f"the reply has over {_HEAD_BYTES} bytes of headers")
