"""What every Transport does on a real socket: connections, their ends, TLS, sizes, crowds; framing is next door."""

import asyncio
import contextlib
import time
from pathlib import Path

import pytest
from aiohttp import web

from backends.servers import Connection, MakeTransport, RawServer, Script, Serve, ServeRaw, answer, post, says
from batchmill.backends import aiohttp_transport, wire
from batchmill.backends.backend import Reply
from batchmill.backends.transport import Transport
from batchmill.schedule.retry import Fault
from fakeclock import FakeClock, settle

MEGABYTES = 10_000_000


async def echo(_raw: RawServer, connection: Connection) -> None:
    """Answer every request with its own body."""
    while request := await connection.read_request():
        await connection.write(answer(request.partition(b"\r\n\r\n")[2]))


def first_then(*, ending: bytes = b"", reply: bytes = answer(b"{}")) -> Script:
    """A server whose first connection says `reply`, then, after one more request, `ending`, and hangs up."""

    async def script(raw: RawServer, connection: Connection) -> None:
        first_of_all = raw.connections == 1
        while await connection.read_request():
            await connection.write(reply)
            if first_of_all:
                await connection.read_request()
                await connection.write(ending)
                return

    return script


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
async def test_ten_megabytes_go_and_come_whole(
    make_transport: MakeTransport,
    serve_raw: ServeRaw,
    serve_tls: ServeRaw,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    secure: bool,
) -> None:
    """A large body and a large reply arrive byte for byte, and their connection is used again."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    raw = await (serve_tls if secure else serve_raw)(echo)
    transport = make_transport(max_reply_bytes=MEGABYTES)
    body = bytes(range(256)) * (MEGABYTES // 256)

    replies = [await post(transport, raw.url, body=body), await post(transport, raw.url, body=b"{}")]

    assert [reply.status for reply in replies] == [200, 200]
    assert (replies[0].body == body, replies[1].body) == (True, b"{}")
    assert raw.connections == 1


async def test_a_reply_before_the_whole_body_was_taken_is_an_answer(transport: Transport, serve_raw: ServeRaw) -> None:
    """A server may refuse a large body by its head; the connection, half a request in it, is not used again."""

    async def script(raw: RawServer, connection: Connection) -> None:
        await connection.read_head()
        await connection.write(answer(b"{}", b"HTTP/1.1 413 Content Too Large"))
        await raw.hung_up.wait()

    raw = await serve_raw(script)
    reply = await post(transport, raw.url, body=b"x" * MEGABYTES)
    again = await post(transport, raw.url)
    raw.hung_up.set()

    assert (reply.status, again.status, raw.connections) == (413, 413, 2)


@pytest.mark.parametrize("how", ["closes", "closes half"])
async def test_a_connection_that_was_closed_while_idle_is_not_used(
    transport: Transport, serve_raw: ServeRaw, how: str
) -> None:
    """The end of an idle connection, or of its server's half, is seen before the next request is sent on it."""
    go_on = asyncio.Event()

    async def script(raw: RawServer, connection: Connection) -> None:
        if raw.connections > 1:
            await echo(raw, connection)
            return
        await connection.read_request()
        await connection.write(answer(b"{}"))
        await go_on.wait()
        connection.half_close()
        if how == "closes half":
            await connection.closed_by_client()
            raw.hung_up.set()

    raw = await serve_raw(script)
    await post(transport, raw.url)
    go_on.set()
    await settle()
    if how == "closes half":
        await asyncio.wait_for(raw.hung_up.wait(), 10)
    reply = await post(transport, raw.url)

    assert (reply.status, reply.resent, raw.connections) == (200, 0, 2)


@pytest.mark.parametrize(
    "reply",
    [
        answer(b"{}", b"HTTP/1.1 200 OK\r\nConnection: close"),
        answer(b"{}", b"HTTP/1.0 200 OK"),
        answer(b"{}", b"HTTP/1.1 204 No Content") + answer(b"{}"),
    ],
    ids=["the last of its requests", "HTTP/1.0", "a body where none may be"],
)
async def test_a_connection_that_will_close_is_not_used(
    transport: Transport, serve_raw: ServeRaw, reply: bytes
) -> None:
    """A server that says that it will close, after a number of requests or always, gets the next one anew."""

    async def script(_raw: RawServer, connection: Connection) -> None:
        while await connection.read_request():
            await connection.write(reply)

    raw = await serve_raw(script)
    replies = [await post(transport, raw.url) for _ in range(2)]

    assert [again.resent for again in replies] == [0, 0]
    assert raw.connections == 2


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 204 No Content", b"HTTP/1.1 304 Not Modified", b"HTTP/1.0 200 OK\r\nConnection: keep-alive"],
)
async def test_a_reply_that_needs_no_end_leaves_its_connection_usable(
    transport: Transport, serve_raw: ServeRaw, head: bytes
) -> None:
    """204 and 304 have no body, HTTP/1.0 may ask to be kept: the next request uses the same connection."""
    length = b"\r\nContent-Length: 0" if head.startswith(b"HTTP/1.0") else b""

    async def script(_raw: RawServer, connection: Connection) -> None:
        while await connection.read_request():
            await connection.write(head + length + b"\r\n\r\n")

    raw = await serve_raw(script)
    replies = [await post(transport, raw.url) for _ in range(2)]

    assert {reply.status for reply in replies} == {int(head.split()[1])}
    assert raw.connections == 1


async def test_a_request_that_was_heard_is_not_sent_again(clock: FakeClock, serve_raw: ServeRaw) -> None:
    """Half a head on a used connection is an answer begun, and not repeated; aiohttp cannot tell us that, and is."""
    transport = wire.WireTransport(clock=clock, max_reply_bytes=1_000)
    raw = await serve_raw(first_then(ending=b"HTTP/1.1 200 OK\r\nConte"))
    await post(transport, raw.url)
    reply = await post(transport, raw.url)
    await transport.close()

    assert (reply.fault, reply.resent, raw.connections) == (Fault.RESET, 0, 1)


async def test_a_reset_as_we_send_is_replaced_too(transport: Transport, serve_raw: ServeRaw) -> None:
    """A connection that is reset as it is used again costs no attempt either."""

    async def script(raw: RawServer, connection: Connection) -> None:
        first_of_all = raw.connections == 1
        while await connection.read_request():
            await connection.write(answer(b"{}"))
            if first_of_all:
                await connection.read_request()
                connection.reset()
                return

    raw = await serve_raw(script)
    replies = [await post(transport, raw.url) for _ in range(2)]

    assert [reply.resent for reply in replies] == [0, 1]


async def test_an_idle_connection_is_closed_by_us(
    make_transport: MakeTransport, serve_raw: ServeRaw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """We hang up before the server does, so that few requests meet its closing."""
    for module in (wire, aiohttp_transport):
        monkeypatch.setattr(module, "IDLE_SECONDS", 0.05)

    async def script(raw: RawServer, connection: Connection) -> None:
        await echo(raw, connection)
        raw.hung_up.set()

    raw = await serve_raw(script)
    await post(make_transport(), raw.url)

    await asyncio.wait_for(raw.hung_up.wait(), 10)


async def test_a_silent_server_is_left_at_the_deadline(transport: Transport, serve_raw: ServeRaw) -> None:
    """A deadline holds on a connection that had a longer one before, and the connection is closed."""

    async def script(raw: RawServer, connection: Connection) -> None:
        await connection.read_request()
        await connection.write(answer(b"{}"))
        await connection.read_request()
        await connection.closed_by_client()
        raw.hung_up.set()

    raw = await serve_raw(script)
    await post(transport, raw.url, deadline=1_000)
    began = time.monotonic()
    reply = await post(transport, raw.url, deadline=0.2)
    took = time.monotonic() - began
    await asyncio.wait_for(raw.hung_up.wait(), 10)

    assert Reply(fault=Fault.TIMEOUT, detail="no complete reply within 0.2 s") == reply
    assert 0.19 < took < 3  # uvloop counts whole milliseconds


async def test_a_short_deadline_does_not_end_the_next_request(transport: Transport, serve_raw: ServeRaw) -> None:
    """A connection whose last request had a short deadline carries one with a long one."""
    go_on = asyncio.Event()

    async def script(_raw: RawServer, connection: Connection) -> None:
        await connection.read_request()
        await connection.write(answer(b"{}"))
        await connection.read_request()
        await go_on.wait()
        await connection.write(answer(b"{}"))

    raw = await serve_raw(script)
    await post(transport, raw.url, deadline=0.1)
    asyncio.get_running_loop().call_later(0.15, go_on.set)

    assert (await post(transport, raw.url, deadline=20)).status == 200
    assert raw.connections == 1


@pytest.mark.parametrize("data", [b"{}", b"SSH-2.0-OpenSSH_9.2\r\n", b"\x15\x03\x01\x00\x02\x02\x46"])
async def test_what_is_no_http_is_garbled(transport: Transport, serve_raw: ServeRaw, data: bytes) -> None:
    """A body without a head (HTTP/0.9), another protocol and a TLS alert are no replies."""
    raw = await serve_raw(says(data))

    reply = await post(transport, raw.url)

    assert Reply(fault=Fault.GARBLED, detail="the reply is not valid HTTP") == reply


@pytest.mark.parametrize("coding", [b"gzip", b"gzip, chunked", b"identity"])
async def test_a_transfer_coding_that_we_did_not_ask_for_is_refused(
    transport: Transport, serve_raw: ServeRaw, coding: bytes
) -> None:
    """Only chunks are taken off; a body coded otherwise would be stored as it came."""
    raw = await serve_raw(says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: " + coding + b"\r\n\r\n2\r\n{}\r\n0\r\n\r\n"))

    reply = await post(transport, raw.url)

    assert reply.fault == Fault.GARBLED
    assert "transfer coding" in reply.detail


async def test_a_second_content_encoding_is_looked_at(transport: Transport, serve_raw: ServeRaw) -> None:
    """A compressed reply does not pass behind a header that says it is plain."""
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: identity\r\nContent-Encoding: gzip"
    raw = await serve_raw(says(answer(b"\x1f\x8b", head)))

    assert (await post(transport, raw.url)).fault == Fault.GARBLED


async def test_a_trusted_server_is_spoken_to_in_tls(
    transport: Transport, serve_tls: ServeRaw, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over TLS requests go and replies come, on one connection, where the certificate is trusted and names the host."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    raw = await serve_tls(echo)
    replies = [await post(transport, raw.url, body=body) for body in (b"1", b"2")]

    assert [reply.body for reply in replies] == [b"1", b"2"]
    assert raw.connections == 1


async def test_an_untrusted_certificate_is_refused(transport: Transport, serve_tls: ServeRaw) -> None:
    """A certificate that nobody vouches for ends it before the request, and its key, left."""
    raw = await serve_tls(echo)

    reply = await post(transport, raw.url)

    assert Reply(fault=Fault.UNREACHABLE, detail="its TLS certificate is not trusted") == reply


async def test_a_certificate_of_another_name_is_refused(
    transport: Transport, serve_tls: ServeRaw, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trusted certificate counts for the host that it names alone."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    raw = await serve_tls(echo)

    reply = await post(transport, raw.url.replace("localhost", "127.0.0.1"))

    assert Reply(fault=Fault.UNREACHABLE, detail="its TLS certificate is not trusted") == reply


@pytest.mark.parametrize("silent", [True, False], ids=["is silent", "hangs up"])
async def test_a_handshake_that_does_not_come_about_is_unreachable(
    make_transport: MakeTransport, serve_raw: ServeRaw, *, silent: bool
) -> None:
    """The handshake is under the connect timeout; a server that ends it never saw the request."""

    async def script(_raw: RawServer, connection: Connection) -> None:
        if silent:
            await connection.closed_by_client()

    raw = await serve_raw(script)
    reply = await post(make_transport(connect_timeout=0.2), raw.url.replace("http:", "https:"))

    assert (reply.status, reply.fault) == (None, Fault.UNREACHABLE)
    assert reply.detail


async def test_a_thousand_requests_at_a_time_get_their_own_replies(transport: Transport, serve_raw: ServeRaw) -> None:
    """Nothing is mixed up in a crowd, and those connections serve the next crowd."""
    raw = await serve_raw(echo)
    crowds = []
    for crowd in range(2):
        bodies = [b'{"crowd": %d, "line": %d}' % (crowd, line) for line in range(1_000)]
        replies = await asyncio.gather(*(post(transport, raw.url, body=body) for body in bodies))
        crowds.append([reply.body for reply in replies] == bodies)

    assert crowds == [True, True]
    assert raw.connections <= 1_000


async def test_a_cancelled_request_leaves_no_reply_to_another(transport: Transport, serve_raw: ServeRaw) -> None:
    """The reply to a request that was cancelled, in whatever moment, is not the next one's."""
    raw = await serve_raw(echo)
    for turns in range(12):
        doomed = asyncio.create_task(post(transport, raw.url, body=b"doomed"))
        await settle(turns)
        doomed.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await doomed

        assert (await post(transport, raw.url, body=b"%d" % turns)).body == b"%d" % turns


async def test_a_cancel_that_comes_with_the_reply_spares_the_next_request(
    clock: FakeClock, serve_raw: ServeRaw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once its reply is whole a connection is another's; who is cancelled in that very moment does not close it."""
    dated = b"HTTP/1.1 200 OK\r\nRetry-After: Fri, 15 Jan 2027 08:00:30 GMT"
    tasks: list[asyncio.Task[Reply]] = []

    async def script(_raw: RawServer, connection: Connection) -> None:
        await connection.read_request()
        await connection.write(answer(b"first", dated))
        await connection.read_request()
        await connection.write(answer(b"second"))

    def now() -> float:  # asked as the reply is read: the next request and the cancel come before who waits wakes
        tasks.append(asyncio.create_task(post(transport, raw.url)))
        asyncio.get_running_loop().call_soon(tasks[0].cancel)
        return clock.time

    monkeypatch.setattr(clock, "now", now)
    transport = wire.WireTransport(clock=clock, max_reply_bytes=1_000)
    raw = await serve_raw(script)
    tasks.append(asyncio.create_task(post(transport, raw.url)))
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]

    assert (await tasks[1]).body == b"second"
    assert raw.connections == 1
    await transport.close()


async def test_closing_ends_what_is_out(make_transport: MakeTransport, serve_raw: ServeRaw) -> None:
    """With the transport every connection is closed; who waited for a reply hears of a lost connection."""
    arrived = asyncio.Event()

    async def script(raw: RawServer, connection: Connection) -> None:
        await connection.read_request()
        arrived.set()
        await connection.closed_by_client()
        raw.hung_up.set()

    raw = await serve_raw(script)
    transport = make_transport()
    waiting = asyncio.create_task(post(transport, raw.url))
    await arrived.wait()
    await transport.close()
    await asyncio.wait_for(raw.hung_up.wait(), 10)

    assert (await waiting).fault == Fault.RESET


async def test_a_url_is_sent_as_rfc_3986_has_it(transport: Transport, serve: Serve) -> None:
    """What may not stand in a request line is quoted, what is quoted stays, and the host is named."""
    seen: list[tuple[str, str]] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append((request.raw_path, request.headers["Host"]))
        return web.Response(text="{}")

    url = await serve(handler)
    await post(transport, f"{url}/a b/ü%2F?v=ä&w=%20")

    assert seen == [("/v1/a%20b/%C3%BC%2F?v=%C3%A4&w=%20", url.split("/")[2])]


async def test_an_address_of_ipv6_is_called(transport: Transport) -> None:
    """A URL may name a host by its IPv6 address."""
    heads: list[bytes] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer(b"{}", b"HTTP/1.1 200 OK\r\nConnection: close"))
        await writer.drain()
        writer.close()

    try:
        server = await asyncio.start_server(accept, "::1", 0)
    except OSError as fault:
        pytest.skip(f"this machine has no IPv6: {fault}")
    port = server.sockets[0].getsockname()[1]
    reply = await post(transport, f"http://[::1]:{port}/v1")
    server.close()

    assert reply.status == 200
    assert b"\r\nHost: [::1]:%d\r\n" % port in heads[0]


@pytest.mark.parametrize("url", ["http://", "ftp://gpu/v1", "http://gpu:99999/v1", "gpu:8000/v1"])
async def test_a_url_that_cannot_be_called_is_unreachable(transport: Transport, url: str) -> None:
    """A URL that names no server is a fault, not an exception."""
    assert (await post(transport, url)).fault == Fault.UNREACHABLE


async def test_a_header_with_a_line_break_is_not_sent(transport: Transport, serve_raw: ServeRaw) -> None:
    """Nobody can add a header of his own through the value of one of ours."""
    raw = await serve_raw(echo)

    with pytest.raises(ValueError, match=r"line break|[Nn]ewline|control"):
        await post(transport, raw.url, headers={"X-Request-Id": "1\r\nX-Evil: 1"})
