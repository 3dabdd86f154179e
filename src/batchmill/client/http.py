"""The calls: a key in a header and nowhere else, calls that are tried again, bytes that stream both ways."""

import asyncio
import io
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import aiohttp
from yarl import URL

from batchmill.client.failure import Failed, Unreachable, refusal
from batchmill.client.retry import TRIES, TRIES_AWAY, is_tried_again, wait_before

Json = dict[str, Any]
Query = Mapping[str, str | int]

SILENCE_SECONDS = 45.0  # of a stream that speaks every 15 s
_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS = 120.0  # without a byte
_UPLOAD_SECONDS = 600.0  # a server looks through the whole file before it answers
_REFUSAL_BYTES = 1 << 16
_ANSWER_BYTES = 64 << 20
_CHUNK = 1 << 18
_BAD = 400  # and above
_TOLD_SECONDS = 2.0  # a shorter wait is not worth a word


def base_of(server: str) -> str:
    """Return the URL that paths such as /batches are added to; it is given with /v1 or without.

    Raises:
        ValueError: it is no URL of a server, or holds what belongs elsewhere; the text says which.
    """
    parts = urlsplit(server.strip())
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("is no URL that begins with http:// or https://")
    if not _has_port(parts):
        raise ValueError("has a port that is no number from 0 to 65535")
    if "@" in parts.netloc:
        raise ValueError("holds a name or a password; the key comes from BATCHMILL_API_KEY")
    if parts.query or parts.fragment or not server.isprintable() or " " in server.strip():
        raise ValueError("is more than a scheme, a host and a path")
    path = parts.path.rstrip("/")
    versioned = any(part[:1] == "v" and part[1:2].isdigit() for part in path.split("/"))
    return f"{parts.scheme}://{parts.netloc}{path}{'' if versioned else '/v1'}"


class Answer:
    """An answer: `body` if it was asked for as a whole, else one whose body has not been read yet."""

    def __init__(self, response: aiohttp.ClientResponse, body: bytes = b"") -> None:
        self._response = response
        self.body = body
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes.

        Raises:
            Unreachable: it breaks off.
        """
        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as fault:
            raise Unreachable(f"The answer broke off: {_why(fault)}.") from fault


class Client:
    """One server, and one who asks it; calls may run beside each other.

    Args:
        session: Carries the calls; the caller closes it.
        base: As `base_of` returns it.
        key: The API key, None if there is none.
        say: Told in a sentence that a call is tried again.
        tries: How often a call is tried in all.
        sleep: Owns the waiting.
    """

    def __init__(
        self,
        *,
        session: aiohttp.ClientSession,
        base: str,
        key: str | None,
        say: Callable[[str], None],
        tries: int = TRIES,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.base = base
        self.has_answered = False  # ever: it is there, and if it is not it may come back
        self._session, self._say, self._tries, self._sleep = session, say, tries, sleep
        self._headers = {"User-Agent": "batchmill"} | ({} if key is None else {"Authorization": f"Bearer {key}"})

    async def get(self, path: str, query: Query | None = None) -> Json:
        """Return what a GET answers.

        Raises:
            Refused: the server refuses it.
            Unreachable: there is no answer.
        """
        async with self.open("GET", path, query=query, whole=True) as answer:
            return _object(answer.body)

    async def post(self, path: str, body: Mapping[str, object] | None = None) -> Json:
        """Return what a POST answers; however often it is tried, one thing is made. Errors as in `get`."""
        text = None if body is None else json.dumps(body).encode()
        async with self.open("POST", path, data=lambda: text, whole=True) as answer:
            return _object(answer.body)

    async def delete(self, path: str) -> Json:
        """Return what a DELETE answers. Errors as in `get`."""
        async with self.open("DELETE", path, whole=True) as answer:
            return _object(answer.body)

    async def upload(self, path: Path, *, purpose: str, told: Callable[[int], None]) -> Json:
        """Return the File that an upload makes; `told` the bytes that have been read, from 0 again for each try.

        Raises:
            OSError: the file cannot be read.
            Refused: the server refuses it.
            Unreachable: there is no answer.
        """

        def form() -> aiohttp.FormData:
            data = aiohttp.FormData()
            data.add_field("purpose", purpose)
            stream = _Told(io.FileIO(path), told)
            data.add_field("file", stream, filename=path.name, content_type="application/octet-stream")
            return data

        async with self.open("POST", "/files", data=form, silence=_UPLOAD_SECONDS, whole=True) as answer:
            return _object(answer.body)

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        headers: Mapping[str, str] | None = None,
        data: Callable[[], object] = lambda: None,
        whole: bool = False,
        silence: float = _ANSWER_SECONDS,
    ) -> AsyncIterator[Answer]:
        """Yield the answer to a call, tried until it is one; `data` makes its body for each try.

        An answer that breaks off is tried again, too, if it was asked for as a `whole`; else `chunks` says so.

        Raises:
            Refused: the server refuses it.
            Unreachable: there is no answer.
        """
        sent = self._headers | dict(headers or {})
        if method == "POST":
            sent["Idempotency-Key"] = str(uuid.uuid4())
        for tried in range(1, self._tries + 1):
            body = data()
            if isinstance(body, bytes):
                sent["Content-Type"] = "application/json"
            failed: Failed
            answered: Mapping[str, str] = {}
            try:
                response = await self._session.request(
                    method,
                    URL(self.base + path, encoded=True),
                    params=query,
                    headers=sent,
                    data=body,
                    allow_redirects=method == "GET",
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=silence),
                )
                read = await _whole(response) if whole and response.status < _BAD else b""
            except (aiohttp.ClientError, TimeoutError, ConnectionError) as fault:
                failed, again = Unreachable(f"{self.base} cannot be reached: {_why(fault)}."), tried < TRIES_AWAY
            else:
                self.has_answered = True
                async with response:
                    if response.status < _BAD:
                        yield Answer(response, read)
                        return
                    answered = response.headers
                    failed = refusal(response.status, await _beginning(response))
                    again = is_tried_again(response.status, answered, failed.code)
            if not again or tried == self._tries:
                raise failed
            seconds = wait_before(tried, answered, time.time())
            if seconds >= _TOLD_SECONDS:
                self._say(f"{failed} Trying again in {seconds:.0f} s.")
            await self._sleep(seconds)


@asynccontextmanager
async def connect(
    server: str, *, key: str | None, say: Callable[[str], None], tries: int = TRIES
) -> AsyncIterator[Client]:
    """Yield a client of a server; proxies of the environment carry its calls, save those to this machine.

    Raises:
        ValueError: `server` is no URL of one; see `base_of`.
    """
    base = base_of(server)
    session = aiohttp.ClientSession(
        trust_env=not _is_here(urlsplit(base).hostname or ""),
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=_CHUNK,
    )
    async with session:
        yield Client(session=session, base=base, key=key, say=say, tries=tries)


class _Told(io.BufferedReader):
    """A file that tells how much of it has been read."""

    def __init__(self, raw: io.RawIOBase, told: Callable[[int], None]) -> None:
        super().__init__(raw, _CHUNK)
        self._told, self._read = told, 0

    def read(self, size: int | None = -1, /) -> bytes:
        chunk = super().read(size)
        self._read += len(chunk)
        self._told(self._read)
        return chunk


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    text = bytearray()
    try:
        async for chunk in response.content.iter_any():
            text += chunk
            if len(text) > _ANSWER_BYTES:
                break
    except BaseException:
        response.close()
        raise
    if len(text) > _ANSWER_BYTES:
        response.close()
        raise Failed(f"The server answers with over {_ANSWER_BYTES:,} bytes.")
    return bytes(text)


def _object(text: bytes) -> Json:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise Failed("The server answers with no JSON: is it one of the Batch API?") from fault
    if not isinstance(found, dict):
        raise Failed("The server answers with no JSON object: is it one of the Batch API?")
    return found


async def _beginning(response: aiohttp.ClientResponse) -> bytes:
    try:
        return await response.content.read(_REFUSAL_BYTES)
    except (aiohttp.ClientError, TimeoutError, OSError):
        return b""


def _why(fault: BaseException) -> str:
    """Return why, in a few words; an exception without any is named."""
    if isinstance(fault, aiohttp.ClientPayloadError):
        return "the connection was lost"
    if isinstance(fault, aiohttp.ClientConnectorError):
        fault = fault.os_error
    if isinstance(fault, ConnectionRefusedError):
        return "nobody listens there"
    if isinstance(fault, OSError) and fault.strerror:
        return fault.strerror
    if isinstance(fault, TimeoutError):
        return "no answer in time"
    return str(fault) or type(fault).__name__


def _has_port(parts: SplitResult) -> bool:
    """Return whether its port, if it names one, is one."""
    try:
        return parts.port is None or parts.port >= 0
    except ValueError:
        return False


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
