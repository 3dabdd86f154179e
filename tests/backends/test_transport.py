import asyncio
import socket
import time
from email.utils import formatdate

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from backends.servers import Connection, MakeTransport, RawServer, Serve, ServeRaw, answer, post, says
from batchmill.backends.backend import Reply
from batchmill.backends.transport import Transport, retry_after_seconds
from batchmill.schedule.retry import Fault
from fakeclock import FakeClock, settle


async def test_a_reply_comes_back_as_the_server_sent_it(transport: Transport, serve: Serve) -> None:
    """Status and body of an answer are the server's, whatever they are."""

    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=418, body=b'{"got": ' + await request.read() + b"}\r\n")

    reply = await post(transport, await serve(handler), body=b' {"a":\t1} ')

    assert Reply(status=418, body=b'{"got":  {"a":\t1} }\r\n') == reply


async def test_the_request_carries_our_headers_and_asks_for_a_plain_reply(
    transport: Transport, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given headers are sent, no compression is asked for, and the proxy of the environment is not used."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    seen: CIMultiDict[str] = CIMultiDict()

    async def handler(request: web.Request) -> web.Response:
        seen.update(request.headers)
        return web.Response(text="{}")

    await post(transport, await serve(handler), headers={"X-Request-Id": "req_1"})

    assert seen["X-Request-Id"] == "req_1"
    assert seen["Accept-Encoding"] == "identity"
    assert seen["User-Agent"] == "batchmill"


async def test_a_body_above_a_mebibyte_arrives_whole(transport: Transport, serve: Serve) -> None:
    """A large body is sent with its length and without a warning."""
    sizes: list[int | None] = []

    async def handler(request: web.Request) -> web.Response:
        sizes.extend([request.content_length, len(await request.read())])
        return web.Response(text="{}")

    reply = await post(transport, await serve(handler), body=b"x" * 3_000_000)

    assert reply.status == 200
    assert sizes == [3_000_000, 3_000_000]


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        pytest.param(b"", Fault.RESET, id="FIN before the reply"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Le", Fault.RESET, id="FIN inside the head"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", Fault.GARBLED, id="FIN inside the body"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
            Fault.GARBLED,
            id="FIN inside a chunk",
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
            Fault.GARBLED,
            id="chunk size is no number",
        ),
        pytest.param(b"hello\r\n\r\n", Fault.GARBLED, id="no HTTP"),
        pytest.param(b"HTTP/1.1 999999 OK\r\n\r\n", Fault.GARBLED, id="no status"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", Fault.GARBLED, id="one header of 100 kB"
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 1_000 + b"Content-Length: 2\r\n\r\n{}",
            Fault.GARBLED,
            id="a thousand headers",
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
            Fault.GARBLED,
            id="two lengths",
        ),
        pytest.param(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            Fault.GARBLED,
            id="another protocol",
        ),
        pytest.param(
            answer(b"\x1f\x8b", b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip"), Fault.GARBLED, id="gzip, unasked for"
        ),
        pytest.param(
            answer(b"{}", b"HTTP/1.1 200 OK\r\nContent-Encoding: br, identity"), Fault.GARBLED, id="br, unasked for"
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 200001\r\n\r\n", Fault.OVERSIZE, id="a length above the cap"),
        pytest.param(answer(b"x" * 200_001), Fault.OVERSIZE, id="a body above the cap"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 200_001, Fault.OVERSIZE, id="no length, above the cap"),
    ],
)
async def test_a_bad_reply_is_a_fault(transport: Transport, serve_raw: ServeRaw, data: bytes, fault: Fault) -> None:
    """What is no whole, plain, bounded HTTP reply is a fault without a status, and says why."""
    raw = await serve_raw(says(data))

    reply = await post(transport, raw.url)

    assert (None, fault) == (reply.status, reply.fault)
    assert reply.detail


@pytest.mark.parametrize(
    ("data", "body"),
    [
        pytest.param(answer(b"x" * 200_000), b"x" * 200_000, id="as long as the cap"),
        pytest.param(b"HTTP/1.0 200 OK\r\n\r\n{}", b"{}", id="HTTP/1.0, ended by FIN"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\nTrailer: x\r\n\r\n",
            b"{}",
            id="chunks and a trailer",
        ),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" * 50 + answer(b"{}"), b"{}", id="fifty times 100 first"),
        pytest.param(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + answer(b"{}"), b"{}", id="early hints first"),
        pytest.param(answer(b"{}", b"HTTP/1.1 200 OK\r\nContent-Encoding: identity"), b"{}", id="identity named"),
    ],
)
async def test_an_odd_but_legal_reply_is_read(
    transport: Transport, serve_raw: ServeRaw, data: bytes, body: bytes
) -> None:
    """Every legal framing of HTTP/1 gives the body."""
    raw = await serve_raw(says(data))

    assert Reply(status=200, body=body) == await post(transport, raw.url)


async def test_an_endless_reply_is_cut_and_its_connection_dropped(transport: Transport, serve_raw: ServeRaw) -> None:
    """A server that never stops talking is hung up on once the cap is passed."""

    async def script(raw: RawServer, connection: Connection) -> None:
        await connection.read_request()
        await connection.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while True:
                await connection.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        except ConnectionError:
            raw.hung_up.set()

    raw = await serve_raw(script)

    reply = await post(transport, raw.url)
    await asyncio.wait_for(raw.hung_up.wait(), 10)

    assert reply.fault == Fault.OVERSIZE


async def test_a_reset_is_told_from_a_refusal(transport: Transport, serve_raw: ServeRaw) -> None:
    """A connection lost after the request was sent is RESET: the request may have run."""

    async def script(_raw: RawServer, connection: Connection) -> None:
        await connection.read_request()
        connection.reset()

    raw = await serve_raw(script)

    assert (await post(transport, raw.url)).fault == Fault.RESET


async def test_a_reset_inside_the_body_is_a_reply_that_broke_off(transport: Transport, serve_raw: ServeRaw) -> None:
    """Half a reply is garbled, whether it ends by FIN or by RST."""
    half = answer(b"{}" * 50_000)[:5_000]

    async def script(_raw: RawServer, connection: Connection) -> None:
        await connection.read_request()
        await connection.write(half)
        connection.reset()

    raw = await serve_raw(script)
    reply = await post(transport, raw.url)

    assert reply.status is None
    assert reply.fault in (Fault.GARBLED, Fault.RESET)  # an RST may overtake the head that was sent before it


async def test_a_closed_port_is_unreachable(transport: Transport) -> None:
    """Where nobody listens, the request was never sent."""
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        reply = await post(transport, f"http://127.0.0.1:{unheard.getsockname()[1]}/")

    assert reply.fault == Fault.UNREACHABLE
    assert "cannot be connected to" in reply.detail


async def test_an_unknown_host_is_unreachable(transport: Transport) -> None:
    """A name without an address means that the request was never sent."""
    reply = await post(transport, "http://no-such-host.invalid/")

    assert reply.fault == Fault.UNREACHABLE
    assert reply.detail == "its host name cannot be resolved"


async def test_a_failed_handshake_is_unreachable(transport: Transport, serve_raw: ServeRaw) -> None:
    """A server that does not speak TLS on an https URL never saw the request."""

    async def script(_raw: RawServer, connection: Connection) -> None:
        await connection.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    raw = await serve_raw(script)
    reply = await post(transport, raw.url.replace("http:", "https:"))

    assert reply.fault == Fault.UNREACHABLE
    assert "TLS" in reply.detail


async def test_an_unaccepted_connection_is_unreachable(make_transport: MakeTransport) -> None:
    """The connect has a timeout of its own: a request that never left is no timeout of the model."""
    transport = make_transport(connect_timeout=0.2)
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for filler in (first, second):  # they fill the queue of a listener that accepts nobody
            filler.setblocking(False)  # noqa: FBT003 - the standard library's own signature
            filler.connect_ex(full.getsockname())
        reply = await post(transport, f"http://127.0.0.1:{full.getsockname()[1]}/")

    assert reply.fault == Fault.UNREACHABLE


@pytest.mark.parametrize("opening", [b" 200 O", b" 200 OK\r\nX: ", b" 200 OK\r\nContent-Length: 99\r\n\r\n"])
async def test_a_dripping_reply_is_cut_at_the_deadline(
    transport: Transport, serve_raw: ServeRaw, opening: bytes
) -> None:
    """The deadline is for the whole attempt, however busily the server drips, in the head or in the body."""

    async def script(raw: RawServer, connection: Connection) -> None:
        await connection.read_request()
        await connection.write(b"HTTP/1.1" + opening)
        drip = asyncio.create_task(connection.closed_by_client())
        while not drip.done():
            await connection.write(b" ")
            await asyncio.wait([drip], timeout=0.05)
        raw.hung_up.set()

    raw = await serve_raw(script)
    began = time.monotonic()

    reply = await post(transport, raw.url, deadline=0.3)
    took = time.monotonic() - began
    await asyncio.wait_for(raw.hung_up.wait(), 10)

    assert reply.fault == Fault.TIMEOUT
    assert 0.29 < took < 3  # uvloop counts whole milliseconds


async def test_a_redirect_is_not_followed(transport: Transport, serve: Serve) -> None:
    """A redirect is an answer like others: what it points at is not asked, and gets no key."""
    asked: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    reply = await post(transport, f"{await serve(handler)}/here")

    assert reply.status == 307
    assert asked == ["/v1/here"]


async def test_cookies_are_not_kept(transport: Transport, serve: Serve) -> None:
    """A server's cookie does not come back to it."""
    cookies: list[str | None] = []

    async def handler(request: web.Request) -> web.Response:
        cookies.append(request.headers.get("Cookie"))
        return web.Response(text="{}", headers={"Set-Cookie": "track=me"})

    url = await serve(handler)
    await post(transport, url)
    await post(transport, url)

    assert cookies == [None, None]


async def test_a_connection_is_used_again(transport: Transport, serve_raw: ServeRaw) -> None:
    """Two requests, one after the other, share one connection."""

    async def script(_raw: RawServer, connection: Connection) -> None:
        while await connection.read_request():
            await connection.write(answer(b"{}"))

    raw = await serve_raw(script)
    await post(transport, raw.url)
    await post(transport, raw.url)

    assert raw.connections == 1


async def test_a_stale_connection_is_replaced(transport: Transport, serve_raw: ServeRaw) -> None:
    """A connection that closes as it is used again costs no attempt, but is told: not a byte of a reply had come."""

    async def script(raw: RawServer, connection: Connection) -> None:
        first_of_all = raw.connections == 1
        while await connection.read_request():
            await connection.write(answer(b"{}"))
            if first_of_all:
                await connection.read_request()  # taken, and not answered
                return

    raw = await serve_raw(script)
    first, second = await post(transport, raw.url), await post(transport, raw.url)

    assert (first.status, first.resent) == (200, 0)
    assert (second.status, second.resent) == (200, 1)
    assert raw.connections == 2


async def test_a_line_that_may_run_once_is_not_sent_again_in_silence(transport: Transport, serve_raw: ServeRaw) -> None:
    """With `once` a connection that closes as it is used again is a reset: the server may have read the request."""

    async def script(_raw: RawServer, connection: Connection) -> None:
        while await connection.read_request():
            await connection.write(answer(b"{}"))
            await connection.read_request()
            return

    raw = await serve_raw(script)
    await post(transport, raw.url)
    reply = await post(transport, raw.url, once=True)

    assert reply.fault is Fault.RESET
    assert raw.connections == 1


async def test_bytes_after_a_reply_are_no_reply_to_the_next(transport: Transport, serve_raw: ServeRaw) -> None:
    """A connection with more bytes than its answer is dropped, so answers are never mixed up."""

    async def script(raw: RawServer, connection: Connection) -> None:
        mine = b'{"connection": %d}' % raw.connections
        while await connection.read_request():
            await connection.write(answer(mine) + answer(b'{"of": "another"}'))

    raw = await serve_raw(script)
    bodies = [(await post(transport, raw.url)).body for _ in range(3)]

    assert bodies == [b'{"connection": 1}', b'{"connection": 2}', b'{"connection": 3}']


async def test_bytes_on_an_idle_connection_are_no_reply_to_the_next(transport: Transport, serve_raw: ServeRaw) -> None:
    """What a server says while nobody asks is not taken for an answer; the request goes over a new connection."""
    go_on = asyncio.Event()
    said = asyncio.Event()

    async def script(raw: RawServer, connection: Connection) -> None:
        mine = b'{"connection": %d}' % raw.connections
        await connection.read_request()
        await connection.write(answer(mine))
        await go_on.wait()
        await connection.write(answer(b'{"of": "another"}'))
        said.set()
        await connection.closed_by_client()

    raw = await serve_raw(script)
    first = await post(transport, raw.url)
    go_on.set()
    await said.wait()
    await settle()
    second = await post(transport, raw.url)

    assert (first.body, second.body) == (b'{"connection": 1}', b'{"connection": 2}')


async def test_a_cancel_passes_through_and_hangs_up(transport: Transport, serve_raw: ServeRaw) -> None:
    """Cancelling an attempt raises, and tells the engine to stop by closing the connection."""
    arrived = asyncio.Event()

    async def script(raw: RawServer, connection: Connection) -> None:
        await connection.read_request()
        arrived.set()
        await connection.closed_by_client()
        raw.hung_up.set()

    raw = await serve_raw(script)
    attempt = asyncio.create_task(post(transport, raw.url))
    await arrived.wait()
    attempt.cancel()

    with pytest.raises(asyncio.CancelledError):
        await attempt
    await asyncio.wait_for(raw.hung_up.wait(), 10)


async def test_retry_after_comes_with_the_reply(transport: Transport, serve: Serve, clock: FakeClock) -> None:
    """A date is turned into seconds from now by the clock that we were given."""

    async def handler(_request: web.Request) -> web.Response:
        return web.Response(status=429, headers={"Retry-After": formatdate(clock.now() + 30, usegmt=True)})

    reply = await post(transport, await serve(handler))

    assert (reply.status, reply.retry_after) == (429, 30.0)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        (" 0 ", 0.0),
        ("1.5", 1.5),
        ("1000000000", 1e9),
        ("-5", None),
        ("1e9", None),
        ("٣", None),
        ("soon", None),
        ("", None),
        ("Fri, 15 Jan 2027 08:00:30 GMT", 30.0),
        ("Fri, 15 Jan 2027 07:00:00 GMT", 0.0),
        ("Friday, 15-Jan-27 08:00:30 GMT", 30.0),
        ("Fri Jan 15 08:00:30 2027", 30.0),
        ("Fri, 99 Jan 2027 08:00:30 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    """Seconds are read as they are, a date is measured from now, a past one is 0, the rest says nothing."""
    assert seconds == retry_after_seconds(value, now=1_800_000_000.0)


@given(st.text())
def test_no_retry_after_breaks_the_reader(value: str) -> None:
    """Any text gives None or seconds that are not negative."""
    seconds = retry_after_seconds(value, now=1_800_000_000.0)

    assert seconds is None or seconds >= 0


async def test_closing_twice_does_nothing(transport: Transport) -> None:
    """A transport that was never used, or is closed already, closes."""
    await transport.close()
    await transport.close()
