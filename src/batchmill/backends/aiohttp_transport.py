"""The Transport by aiohttp: a second carrier, for who trusts it more than ours."""

import asyncio
import io
from collections.abc import Mapping
from typing import Final

import aiohttp
from aiohttp.connector import Connection
from msgspec.structs import replace

from batchmill.backends.backend import Reply
from batchmill.backends.transport import HEADERS, IDLE_SECONDS, coding_refused, retry_after_seconds, tls_context
from batchmill.clock import Clock
from batchmill.schedule.retry import Fault

__all__ = ["AiohttpTransport"]

_LARGE_BODY: Final = 1 << 20  # above it aiohttp wants a file object, or it warns
_RESENDS: Final = 2  # each may meet a connection that is closing


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

        A server may close an idle connection just as we send on it. Where no reply's head came back on a connection
        that had been used before, the request is sent again at once, a few times, unless `once`; the Reply says so.
        (Whether half a head came, aiohttp does not tell.)
        """
        resent = 0
        try:
            async with asyncio.timeout(deadline):
                while True:
                    trace = _Trace()
                    try:
                        reply = await self._exchange(method, url, headers, body, trace)
                        return replace(reply, resent=resent) if resent else reply
                    except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                        never_sent = isinstance(error, aiohttp.ClientConnectorError)
                        if once or never_sent or not trace.reused or resent == _RESENDS:
                            raise
                    resent += 1
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            return replace(_fault(error, deadline), resent=resent)

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
            content, transfer = (
                ", ".join(response.headers.getall(name, ())) for name in ("Content-Encoding", "Transfer-Encoding")
            )
            if why := coding_refused(content=content, transfer=transfer):
                return Reply(fault=Fault.GARBLED, detail=why)
            body_read = await self._read(response)
            if body_read is None:
                limit = self._max_reply_bytes
                return Reply(fault=Fault.OVERSIZE, detail=f"the reply is longer than {limit} bytes")
            wait = retry_after_seconds(response.headers.get("Retry-After"), now=self._clock.now())
            return Reply(status=response.status, body=body_read, retry_after=wait)

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
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS, ssl=tls_context()),
                cookie_jar=aiohttp.DummyCookieJar(),
                request_class=_CleanRequest,
                headers=HEADERS,
                timeout=aiohttp.ClientTimeout(total=None, connect=self._connect_timeout),
                trust_env=False,
                auto_decompress=False,
                trace_configs=[tracing],
            )
        return self._session


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
