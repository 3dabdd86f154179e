"""What is refused before it is a request, and what no connection may do for ever (reliability 4.6; A19, A20, A33).

These tests also hold uvicorn to what `api/protocol.py` expects of its insides: were a call there named otherwise, heads
would have no bound, refusals no envelope, and silent connections no end.
"""

import socket
import time
from collections.abc import Callable, MutableMapping
from dataclasses import replace
from typing import Any

import pytest

from api.raw import answers, connected, exchange, told
from api.served import LINE, Served, Tenant, check, file_part, form, text_part
from batchmill.spec.limits import KIMI, Limits

GET = b"GET /healthz HTTP/1.1\r\nHost: h\r\n"
POST = b"POST /healthz HTTP/1.1\r\nHost: h\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
CLOSE = b"Connection: close\r\n\r\n"
CONTENT_TYPE, FORM = form(text_part("purpose", "batch"), file_part(LINE))


def upload_head(tenant: Tenant, framing: bytes) -> bytes:
    """Return the head of an upload, whose body comes in this framing."""
    facts = f"Authorization: Bearer {tenant.key}\r\nContent-Type: {CONTENT_TYPE}\r\n".encode()
    return b"POST /v1/files HTTP/1.1\r\nHost: h\r\n" + facts + framing + b"\r\n\r\n"


def chunk(content: bytes) -> bytes:
    """Return these bytes as a chunk."""
    return b"%x\r\n%b\r\n" % (len(content), content)


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        pytest.param(GET + b"X: " + b"a" * 200_000 + b"\r\n\r\n", 431, "headers_too_large", id="a header of 200 KB"),
        pytest.param(GET + b"X: a\r\n" * 20_000 + b"\r\n", 431, "headers_too_large", id="20,000 headers"),
        pytest.param(GET + b"a" * 5_000_000, 431, "headers_too_large", id="a name without an end"),
        pytest.param(b"\r\n" * 1_000_000, 431, "headers_too_large", id="empty lines without an end"),
        pytest.param(b"GET /" + b"a" * (1 << 20), 414, "target_too_long", id="A32 path of 1 MB"),
        pytest.param(b"GET /?" + b"a" * 8192 + b" HTTP/1.1\r\n", 414, "target_too_long", id="query of 8 KiB"),
        *(
            pytest.param(b"GET /healthz HTTP/1.1\r\n" + hosts + b"\r\n", 400, None, id=f"host {n}")
            for n, hosts in {
                "missing": b"",
                "empty": b"Host:\r\n",
                "twice": b"Host: h\r\nHost: h\r\n",
                "path": b"Host: a/b?c#d\r\n",
                "user": b"Host: root@h\r\n",
                "space": b"Host: a b\r\n",
                "list": b"Host: a, b\r\n",
                "no port": b"Host: h:\r\n",
                "long port": b"Host: h:123456\r\n",
                "signed port": b"Host: h:-1\r\n",
                "open bracket": b"Host: [::1\r\n",
                "not ASCII": b"Host: \xe4.example\r\n",
            }.items()
        ),
        *(
            pytest.param(POST + lines + b"\r\n\r\n0\r\n\r\n", 400, None, id=lines.decode("latin-1"))
            for lines in (
                b"Content-Length: 5\r\nTransfer-Encoding: chunked",  # A20
                b"Transfer-Encoding: chunked\r\nContent-Length: 5",
                b"Content-Length: 5\r\nContent-Length: 5",  # A19
                b"Content-Length: 5\r\nContent-Length: 6",
                b"Content-Length: -1",
                b"Content-Length: +5",
                b"Content-Length: 5, 5",
                b"Content-Length: 0x10",
                b"Content-Length: 5_0",
                b"Content-Length: ",
                b"Content-Length: 99999999999999999999999",
                b"Transfer-Encoding: gzip, chunked",
                b"Transfer-Encoding: chunked, gzip",
                b"Transfer-Encoding: gzip",
                b"Transfer-Encoding: identity",
                b"Transfer-Encoding: xchunked",
                b"Transfer-Encoding: \x0bchunked",
                b"Transfer-Encoding : chunked",
                b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
                b"X: a\r\n b",  # obs-fold
                b"X: a\nY: b",
                b"X: a\rY: b",
                b"X: a\0b",
                b"X Y: a",
                b": a",
                b"no colon",
            )
        ),
        *(
            pytest.param(CHUNKED + body + b"\r\n", 400, None, id=f"chunk {body.decode('latin-1')}")
            for body in (
                b"-5\r\nhello",
                b"0x5\r\nhello",
                b"5\nhello",
                b"5;\0=\r\nhello",
                b"fffffffffffffffff\r\nhello",
                b"zz\r\n",
            )
        ),
        pytest.param(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, None, id="1.0 and chunks"),
        pytest.param(POST + UPGRADE + b"Content-Length: 5\r\n\r\nhello", 400, None, id="upgrade with a body"),
        pytest.param(b"GET /healthz\r\n\r\n", 400, None, id="A33 HTTP/0.9"),
        pytest.param(b"GET /healthz HTTP/0.9\r\n\r\n", 400, None, id="A33 HTTP/0.9 by name"),
        pytest.param(b"GET /healthz HTTP/1.2\r\nHost: h\r\n\r\n", 400, None, id="HTTP/1.2"),
        pytest.param(b"GET /healthz HTTP/2.0\r\nHost: h\r\n\r\n", 400, None, id="HTTP/2.0"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), 400, None, id="A33 HTTP/2 preface"),
        pytest.param(bytes.fromhex("16030100c8010000c40303") + bytes(100), 400, None, id="A33 TLS ClientHello"),
        pytest.param(GET.replace(b"\r", b"") + b"\n", 400, None, id="line feeds"),
        pytest.param(GET.replace(b"\n", b"") + b"\r", 400, None, id="carriage returns"),
        pytest.param(b"FOO / HTTP/1.1\r\nHost: h\r\n\r\n", 400, None, id="unknown method"),
        pytest.param(b"get / HTTP/1.1\r\nHost: h\r\n\r\n", 400, None, id="method in lower case"),
        pytest.param(b"CONNECT evil:443 HTTP/1.1\r\nHost: h\r\n\r\n", 400, None, id="CONNECT"),
        pytest.param(b"GET healthz HTTP/1.1\r\nHost: h\r\n\r\n", 400, None, id="path without a slash"),
        pytest.param(b"GET /\xc3\xa9 HTTP/1.1\r\nHost: h\r\n\r\n", 400, None, id="path not ASCII"),
        pytest.param(b"GET /heal thz HTTP/1.1\r\nHost: h\r\n\r\n", 400, None, id="space in the path"),
        pytest.param(b"GET http://h:999999/ HTTP/1.1\r\nHost: h\r\n\r\n", 400, None, id="port beyond all ports"),
        pytest.param(b"\0" * 100, 400, None, id="NULs"),
    ],
)
def test_what_is_no_request_is_refused_in_the_envelope(
    served: Served, logged: list[MutableMapping[str, Any]], sent: bytes, status: int, code: str | None
) -> None:
    """There is one answer, in the envelope and with both ids; the connection is closed, and nothing is logged."""
    (answer,) = exchange(served, sent)
    check(answer, envelope=True)
    assert answer.error == (status, "invalid_request_error", None, code)
    assert answer.headers["connection"] == "close"
    assert "date" in answer.headers
    served.idle()
    assert [entry for entry in logged if entry["log_level"] != "info"] == []


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"GET /healthz HTTP/1.1\r\nHost: [::1]:8000\r\n" + CLOSE, id="IPv6"),
        pytest.param(b"GET /healthz HTTP/1.1\r\nHost: batch_mill.example-1.com:65535\r\n" + CLOSE, id="a name"),
        pytest.param(b"GET http://other/healthz HTTP/1.1\r\nHost: h\r\n" + CLOSE, id="absolute form"),
        pytest.param(b"GET /healthz HTTP/1.0\r\n\r\n", id="HTTP/1.0 without a host"),
        pytest.param(b"\r\n\r\n" + GET + CLOSE, id="empty lines before"),
        pytest.param(GET + b"X: \xff\xfe\r\n" + CLOSE, id="a value in Latin-1"),
        pytest.param(GET + b"Upgrade: h2c\r\nConnection: Upgrade, close\r\n\r\n", id="an upgrade that is not taken up"),
        pytest.param(GET + b"X: " + b"a" * 65_000 + b"\r\n" + CLOSE, id="a long head"),
        pytest.param(b"GET /healthz?" + b"a" * 8_000 + b" HTTP/1.1\r\nHost: h\r\n" + CLOSE, id="a long query"),
    ],
)
def test_what_is_odd_but_a_request_is_answered(served: Served, sent: bytes) -> None:
    """The bounds are for what means harm: a name, a proxy, a cookie of kilobytes do not."""
    assert [answer.status for answer in exchange(served, sent)] == [200]


@pytest.mark.parametrize(
    ("name", "head", "status"),
    [
        ("max_head_bytes", "GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nX: {rest}\r\n\r\n", 431),
        ("max_target_bytes", "GET {path}?{rest} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", 414),
    ],
)
def test_a_bound_is_exact(serve: Callable[..., Served], name: str, head: str, status: int) -> None:
    """What is as long as a limit allows is taken, and one byte more is not; path, names and values count."""
    served = serve(limits=replace(KIMI, **{name: 1000}))
    counted = {431: "/healthz" + "Host: h\r\nConnection: close\r\nX: \r\n", 414: "/healthz?"}[status]
    for more, expected in (0, 200), (1, status):
        rest = "a" * (1000 - len(counted) + more)
        (answer,) = exchange(served, head.format(path="/healthz", rest=rest).encode())
        assert answer.status == expected


def test_requests_in_one_piece_are_answered_one_by_one(served: Served) -> None:
    """Of thousands that come at once each counts for itself, and the answers come in their order."""
    got = exchange(served, (GET + b"\r\n") * 3000 + b"GET /healthz?last HTTP/1.1\r\n\r\n")
    assert [answer.status for answer in got] == [200] * 3000
    assert len({answer.headers["x-request-id"] for answer in got}) == 3000


def test_nonsense_behind_a_request_is_not_read_into_its_answer(tenant: Tenant) -> None:
    """A download is whole, whatever its client sends meanwhile; then the connection ends."""
    content = b"x" * 20_000_000
    file_id = tenant.upload(content)["id"]
    head = f"GET /v1/files/{file_id}/content HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {tenant.key}\r\n\r\n"
    (answer,) = exchange(tenant.served, head.encode() + b"nonsense\r\n\r\n")
    assert answer.status == 200
    assert answer.body == content


def test_a_body_whose_framing_breaks_has_one_answer(tenant: Tenant) -> None:
    """The form is given up, nothing of it is kept, and only the framing is complained of."""
    sent = upload_head(tenant, b"Transfer-Encoding: chunked") + chunk(FORM[:100]) + b"zz\r\n"
    (answer,) = exchange(tenant.served, sent)
    assert answer.error == (400, "invalid_request_error", None, None)
    tenant.served.idle()
    assert tenant.bytes_on_disk() == set()


def test_a_trailer_is_no_header(tenant: Tenant) -> None:
    """A key that stands behind the body, where no proxy looks, opens nothing."""
    head = POST.replace(b"/healthz", b"/v1/files") + b"Transfer-Encoding: chunked\r\n\r\n"
    trailer = f"0\r\nAuthorization: Bearer {tenant.key}\r\n\r\n".encode()
    (answer,) = exchange(tenant.served, head + chunk(FORM) + trailer)
    assert answer.status == 401


def test_trailers_are_bounded_as_headers_are(tenant: Tenant) -> None:
    """They count as a part of the head, and what comes of the upload is told by the refusal alone."""
    head = upload_head(tenant, b"Transfer-Encoding: chunked")
    for count, status in (2, 200), (20_000, 431):
        sent = head + chunk(FORM) + b"0\r\n" + b"X: a\r\n" * count + b"\r\n" + GET + CLOSE
        assert exchange(tenant.served, sent)[0].status == status


def test_what_is_said_of_a_chunk_is_bounded(tenant: Tenant) -> None:
    """An extension without an end is nothing that a body may have; the upload has one answer."""
    sent = upload_head(tenant, b"Transfer-Encoding: chunked") + b"5;" + b"a" * 5_000_000
    (answer,) = exchange(tenant.served, sent)
    assert answer.status == 431


@pytest.mark.parametrize(
    ("pieces", "statuses"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([b"\r\n"] * 100, [], id="empty lines"),
        pytest.param([b"GE"], [408], id="half a word"),
        pytest.param([GET], [408], id="half a head"),
        pytest.param([GET, *[b"X: a\r\n"] * 100], [408], id="headers one by one"),
        pytest.param([GET + b"\r\n", *[b"\r\n"] * 100], [200], id="empty lines behind an answer"),
        pytest.param([GET + b"\r\n", *[bytes([c]) for c in GET]], [200, 408], id="byte by byte behind an answer"),
        pytest.param([POST + b"Content-Length: 9999\r\n\r\n", *[b"x"] * 100], [405], id="a body that nobody reads"),
    ],
)
def test_a_head_that_does_not_come_ends_the_connection(
    serve: Callable[..., Served], pieces: list[bytes], statuses: list[int]
) -> None:
    """Trickling bytes do not put it off; who began a head is told, who said nothing is not."""
    served = serve(limits=replace(KIMI, head_seconds=0.3))
    with connected(served) as connection:
        assert [answer.status for answer in answers(_trickle(connection, pieces))] == statuses


def _trickle(connection: socket.socket, pieces: list[bytes]) -> bytes:
    """Send a piece each time that nothing has come for a moment; return what came up to the connection's end."""
    said, left = b"", list(pieces)
    while True:
        connection.settimeout(0.02 if left else 30.0)
        try:
            if not (got := connection.recv(65_536)):
                return said
            said += got
        except TimeoutError:
            connection.sendall(left.pop(0))
        except ConnectionResetError:
            return said


def test_only_a_head_is_waited_for(serve: Callable[..., Served]) -> None:
    """A request may take longer than its head, and an idle connection is kept for the next one."""
    tenant = serve(limits=replace(KIMI, head_seconds=0.5)).tenant()
    with connected(tenant.served) as connection:
        connection.sendall(upload_head(tenant, b"Content-Length: %d" % len(FORM)))
        _nothing_comes(connection)
        connection.sendall(FORM)
        said = b""
        while not said.endswith(b"}"):  # head and body may come in two pieces
            said += connection.recv(65_536)
        assert said.startswith(b"HTTP/1.1 200 ")
        _nothing_comes(connection)
        connection.sendall(GET + CLOSE)
        assert told(connection).startswith(b"HTTP/1.1 200 ")


def _nothing_comes(connection: socket.socket) -> None:
    connection.settimeout(0.8)
    with pytest.raises(TimeoutError):
        connection.recv(65_536)
    connection.settimeout(30.0)


def _download(serve: Callable[..., Served], limits: Limits) -> tuple[Tenant, bytes]:
    """Return a tenant of such a server, and the head of a download that no kernel takes in at once."""
    tenant = serve(limits=limits).tenant()
    file_id = tenant.upload(b"x" * (48 << 20))["id"]
    head = f"GET /v1/files/{file_id}/content HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {tenant.key}\r\n\r\n"
    return tenant, head.encode()


def test_an_answer_that_nobody_reads_is_cut(serve: Callable[..., Served]) -> None:
    """The file behind it is closed, and no memory is held for who never comes back."""
    tenant, head = _download(serve, replace(KIMI, answer_idle=0.3))
    with connected(tenant.served) as connection:
        connection.sendall(head)
        begun = connection.recv(1000)  # else there may be nothing yet whose end could be waited for
        tenant.served.idle()  # ends, though nothing more is read
        assert len(begun) + len(told(connection)) < 48 << 20


def test_an_answer_that_is_read_slowly_is_not_cut(serve: Callable[..., Served]) -> None:
    """Only standing still counts, not the time that it takes as a whole."""
    tenant, head = _download(serve, replace(KIMI, answer_idle=0.4))
    taken = 0
    with connected(tenant.served) as connection:
        connection.sendall(head)
        while taken < 48 << 20:
            for _ in range(32):
                taken += len(connection.recv(1 << 17))
            time.sleep(0.08)  # the slowness itself: 1 s in all
