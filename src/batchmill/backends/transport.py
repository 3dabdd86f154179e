"""HTTP as the backends need it: one request out, one Reply in, every way to fail told apart."""

import asyncio
import io
import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final, Protocol

import aiohttp
from aiohttp.connector import Connection

from batchmill.backends.backend import Reply
from batchmill.clock import Clock
from batchmill.schedule.retry import Fault

__all__ = ["AiohttpTransport", "Transport", "retry_after_seconds"]

_SECONDS: Final = re.compile(r"\d{1,10}(\.\d{1,6})?", re.ASCII)
_LARGE_BODY: Final = 1 << 20  # above it aiohttp wants a file object, or it warns
# uvicorn, and so vLLM and SGLang, closes an idle connection after 5 s: be first, so that fewer POSTs meet the closing.
_IDLE_SECONDS: Final = 4.0
_STALE_CONNECTIONS: Final = 3


class Transport(Protocol):
    """The whole outside world in one method."""

    async def request(
        self,
        *,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        deadline: float,
        once: bool = False,
    ) -> Reply:
        """Make one request and read the whole reply, its body raw, as the server sent it.

        Args:
            method: The HTTP method.
            url: The absolute URL.
            headers: The headers to add.
            body: The body, or None.
            deadline: Seconds for everything, from the connect to the last byte of the reply.
            once: Never send it a second time, not even where the first surely met a closed connection.

        Returns:
            The reply. What goes wrong on the way is a fault in it; only a cancel is raised.
        """

    async def close(self) -> None:
        """Close every connection. A second call does nothing."""


class _Trace:
    """What one request learns about its connection: whether it had been used before."""

    __slots__ = ("reused",)

    def __init__(self) -> None:
        self.reused = False


async def _on_reuse(_session: object, context: object, _params: object) -> None:
    trace = getattr(context, "trace_request_ctx", None)
    if isinstance(trace, _Trace):
        trace.reused = True


class _CleanRequest(aiohttp.ClientRequest):
    """Refuses a connection on which bytes came that nobody had asked for.

    aiohttp looks when a connection goes back to the pool, not when it is taken out: what a server says in between
    would be read as the answer to the next request, and answers would be mixed up from then on.
    """

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        if conn.protocol is None or conn.protocol.should_close:
            raise aiohttp.ServerDisconnectedError("there were bytes after the last reply")
        return await super().send(conn)


class AiohttpTransport:
    """HTTP/1.1 by aiohttp, careful of hostile servers.

    Proxies and netrc of the environment are ignored, redirects not followed, cookies not kept, bodies not
    decompressed. It does not limit connections: Pace does.
    """

    def __init__(self, *, clock: Clock, max_reply_bytes: int, connect_timeout: float = 5.0) -> None:
        """Open nothing yet: the session is made in the loop that first sends.

        Args:
            clock: Tells the time, for a Retry-After that is a date.
            max_reply_bytes: A longer reply is dropped with its connection (`Fault.OVERSIZE`).
            connect_timeout: Seconds for name, TCP and TLS together.
        """
        self._clock = clock
        self._max_reply_bytes = max_reply_bytes
        self._connect_timeout = connect_timeout
        self._session: aiohttp.ClientSession | None = None

    async def request(
        self,
        *,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        deadline: float,
        once: bool = False,
    ) -> Reply:
        """Make one request; see `Transport.request`.

        A server may close an idle connection just as we send on it. Where not one byte came back on a connection
        that had been used before, the request is sent again at once, a few times, and nobody is told; unless `once`.
        """
        stale = 0
        try:
            async with asyncio.timeout(deadline):
                while True:
                    trace = _Trace()
                    try:
                        return await self._exchange(method, url, headers, body, trace)
                    except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                        never_sent = isinstance(error, aiohttp.ClientConnectorError)
                        stale += 1
                        if once or never_sent or not trace.reused or stale >= _STALE_CONNECTIONS:
                            raise
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            return _fault(error, deadline)

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _exchange(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, trace: _Trace
    ) -> Reply:
        data = io.BytesIO(body) if body is not None and len(body) > _LARGE_BODY else body
        session = self._open()
        async with session.request(
            method, url, headers=headers, data=data, allow_redirects=False, trace_request_ctx=trace
        ) as response:
            if response.status < 200:  # noqa: PLR2004 - a 101 hands the connection to another protocol
                return Reply(fault=Fault.GARBLED, detail=f"it answered with status {response.status}")
            encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
            if encoding not in ("", "identity"):
                return Reply(fault=Fault.GARBLED, detail="the reply is compressed, though we asked for a plain one")
            content = await self._read(response)
            if content is None:
                limit = self._max_reply_bytes
                return Reply(fault=Fault.OVERSIZE, detail=f"the reply is longer than {limit} bytes")
            wait = retry_after_seconds(response.headers.get("Retry-After"), now=self._clock.now())
            return Reply(status=response.status, body=content, retry_after=wait)

    async def _read(self, response: aiohttp.ClientResponse) -> bytes | None:
        """The whole body, or None as soon as it is known to be too long; the connection is then dropped."""
        declared = response.content_length
        if declared is not None and declared > self._max_reply_bytes:
            response.close()
            return None
        pieces: list[bytes] = []
        size = 0
        async for piece in response.content.iter_any():
            size += len(piece)
            if size > self._max_reply_bytes:
                response.close()
                return None
            pieces.append(piece)
        return b"".join(pieces)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            tracing = aiohttp.TraceConfig()
            tracing.on_connection_reuseconn.append(_on_reuse)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
                request_class=_CleanRequest,
                headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "batchmill"},
                timeout=aiohttp.ClientTimeout(total=None, connect=self._connect_timeout),
                trust_env=False,
                auto_decompress=False,
                trace_configs=[tracing],
            )
        return self._session


def retry_after_seconds(value: str | None, *, now: float) -> float | None:
    """Seconds that a Retry-After header asks for; None where it is absent or makes no sense.

    Args:
        value: The header: seconds, or an HTTP date (RFC 9110, 10.2.3).
        now: Unix time in seconds, which a date is measured from; a date that has passed gives 0.
    """
    if value is None:
        return None
    text = value.strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    try:
        date = parsedate_to_datetime(text)
        # HTTP dates are in GMT; without that word the parser leaves the zone open.
        return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now)
    except (ValueError, OverflowError, TypeError, IndexError):  # what the parser raises, by trial
        return None


def _fault(error: Exception, deadline: float) -> Reply:
    """Tell the ways to fail apart; what matters first is whether the request can have left."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return Reply(fault=Fault.UNREACHABLE, detail="it did not accept a connection in time")
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
        return Reply(fault=Fault.UNREACHABLE, detail=_why_unconnected(error))
    if isinstance(error, TimeoutError):
        return Reply(fault=Fault.TIMEOUT, detail=f"no complete reply within {deadline:g} s")
    if isinstance(error, aiohttp.ClientPayloadError):
        return Reply(fault=Fault.GARBLED, detail="the reply broke off")
    if isinstance(error, aiohttp.ClientConnectionError | OSError):
        return Reply(fault=Fault.RESET, detail="the connection was lost before the reply came")
    return Reply(fault=Fault.GARBLED, detail="the reply is not valid HTTP")


def _why_unconnected(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its host name cannot be resolved"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "its TLS certificate is not trusted"
    if isinstance(error, aiohttp.ClientSSLError):
        return "the TLS handshake failed"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"it cannot be connected to ({error.strerror or 'no reason given'})"
    return "its URL is not one that we can call"
