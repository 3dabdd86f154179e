"""Bodies that come too slowly, stand still or never end, and more uploads than there are slots."""

import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace

import pytest

from acceptance.serving import until
from api.served import LINE, Served, Tenant, file_part, form, text_part
from batchmill.spec.limits import KIMI
from batchmill.spec.scopes import Scope

CONTENT_TYPE, FORM = form(text_part("purpose", "batch"), file_part(LINE))


@contextmanager
def upload(
    tenant: Tenant, *, length: int = len(FORM), path: str = "/v1/files", key: str = ""
) -> Iterator[socket.socket]:
    """Begin an upload by hand, up to the end of its headers."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {key or tenant.key}\r\n"
        f"Content-Type: {CONTENT_TYPE}\r\nContent-Length: {length}\r\n\r\n"
    )
    with closing(socket.create_connection(("127.0.0.1", tenant.served.port), timeout=30)) as connection:
        connection.sendall(head.encode())
        yield connection


def told(connection: socket.socket) -> bytes:
    """Read until the server closes."""
    said = b""
    while chunk := connection.recv(65_536):
        said += chunk
    return said


@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches"])
def test_a_body_that_stands_still_is_a_408(serve: Callable[..., Served], path: str) -> None:
    """It is answered, its connection ends, and nothing of it is left."""
    tenant = serve(limits=replace(KIMI, body_idle=0.2, drain_seconds=0.1)).tenant()
    with upload(tenant, path=path) as connection:
        connection.sendall(FORM[:50])
        said = told(connection)
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in said
    assert b"connection: close" in said.lower()
    tenant.served.idle()
    assert {state for state, _ in tenant.blobs().values()} <= {"doomed"}


def test_a_body_that_trickles_is_a_408(serve: Callable[..., Served]) -> None:
    """A byte now and then does not keep an upload alive: the rate counts from the end of the grace."""
    tenant = serve(limits=replace(KIMI, body_grace=0.05, body_rate=1_000_000)).tenant()
    with upload(tenant) as connection:
        connection.settimeout(0.02)
        said = b""
        for n in range(len(FORM)):
            connection.sendall(FORM[n : n + 1])
            try:
                said = connection.recv(65_536)
            except TimeoutError:
                continue
            break
    assert said.startswith(b"HTTP/1.1 408 ")


def test_an_endless_body_is_refused_and_not_read_on(serve: Callable[..., Served]) -> None:
    """Once it is larger than a file may be the answer comes, and the connection ends, whatever is still to come."""
    tenant = serve(limits=replace(KIMI, max_input_bytes=1000, drain_seconds=0.1)).tenant()
    with upload(tenant, length=1 << 40) as connection:
        connection.sendall(FORM[:-60] + b"x" * 100_000)
        said = told(connection)
    assert said.startswith(b"HTTP/1.1 400 ")
    assert b"larger than 1000 bytes" in said


def test_a_declared_length_beyond_all_limits_is_refused_unread(tenant: Tenant) -> None:
    """A terabyte that is only announced is answered at once."""
    with upload(tenant, length=1 << 40) as connection:
        assert connection.recv(65_536).startswith(b"HTTP/1.1 400 ")
    tenant.served.idle()
    assert tenant.blobs() == {}


@pytest.mark.parametrize("path", ["/healthz", "/v1/files"])
def test_a_body_without_a_key_is_not_read(served: Served, path: str) -> None:
    """Whoever shows no key is answered and cut off, where none is needed as well; nothing that he sends is taken."""
    head = f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {1 << 30}\r\n\r\n"
    with closing(socket.create_connection(("127.0.0.1", served.port), timeout=30)) as connection:
        connection.sendall(head.encode())
        assert b"connection: close" in told(connection).lower()


def test_a_small_body_without_a_key_costs_nobody_his_answer(served: Served) -> None:
    """What is on its way is read and thrown away: cut off at once, a client may get a reset in place of its 401."""
    head = b"POST /v1/batches HTTP/1.1\r\nHost: h\r\nContent-Length: 60000\r\n\r\n"
    with closing(socket.create_connection(("127.0.0.1", served.port), timeout=30)) as connection:
        connection.sendall(head + b"x" * 30_000)
        assert connection.recv(65_536).startswith(b"HTTP/1.1 401 ")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):  # it waits for the rest
            told(connection)
        connection.settimeout(30)
        connection.sendall(b"x" * 30_000)
        assert told(connection) == b""


def test_a_large_body_that_may_not_be_sent_gets_its_answer(served: Served) -> None:
    """A key without the scope is told so after megabytes, and no reset."""
    tenant = served.tenant()
    tenant = replace(tenant, key=served.key(tenant.id, scopes=[Scope.READ]))
    answer = tenant.call("POST", "/v1/files", b"x" * (32 << 20), Content_Type=CONTENT_TYPE)
    assert answer.status == 403


def test_what_follows_a_form_is_bounded(serve: Callable[..., Served]) -> None:
    """An epilogue without an end is refused like a file without one, though it is no part of the file."""
    tenant = serve(limits=replace(KIMI, max_input_bytes=1000)).tenant()
    answer = tenant.call("POST", "/v1/files", [FORM, *[b"x" * 65_536] * 20], Content_Type=CONTENT_TYPE)
    assert answer.error == (400, "invalid_request_error", "file", "invalid_value")


def test_uploads_beyond_the_slots_are_429s(serve: Callable[..., Served]) -> None:
    """One key has so many uploads at a time; another key's goes on, and a slot is free again when one ends."""
    served = serve(limits=replace(KIMI, max_uploads_per_key=1, body_idle=5.0))
    ours, theirs = served.tenant(), served.tenant()
    with upload(ours) as first:
        first.sendall(FORM[:50])
        until(ours.blobs, 10.0)  # it has its slot
        refused = _again(ours)
        assert refused.startswith(b"HTTP/1.1 429 ")
        assert b"retry-after: 5" in refused.lower()
        assert _again(theirs).startswith(b"HTTP/1.1 200 ")
        first.sendall(FORM[50:])
        assert first.recv(65_536).startswith(b"HTTP/1.1 200 ")
    assert _again(ours).startswith(b"HTTP/1.1 200 ")


def test_all_uploads_together_have_slots_too(serve: Callable[..., Served]) -> None:
    """Where all keys together have taken them, another key's upload is a 429, and reads and deletes go on."""
    served = serve(limits=replace(KIMI, max_uploads=1, body_idle=5.0))
    ours, theirs = served.tenant(), served.tenant()
    file_id = theirs.upload()["id"]
    with upload(ours) as first:
        first.sendall(FORM[:50])
        until(ours.blobs, 10.0)
        assert _again(theirs).startswith(b"HTTP/1.1 429 ")
        for method in ("GET", "DELETE"):
            said = served.ask(method, f"/v1/files/{file_id}", Authorization=f"Bearer {theirs.key}")
            assert said.status == 200
        first.sendall(FORM[50:])
        assert first.recv(65_536).startswith(b"HTTP/1.1 200 ")


def test_no_body_is_waited_for_longer_than_in_all(serve: Callable[..., Served]) -> None:
    """However fast it comes between its pauses, their sum has an end."""
    tenant = serve(limits=replace(KIMI, body_total=0.2, body_rate=1, drain_seconds=0.1)).tenant()
    with upload(tenant, length=50 << 20) as connection:
        connection.settimeout(0.05)
        connection.sendall(FORM[:-60])
        said = b""
        while not said:
            connection.sendall(b"x" * 1000)
            with suppress(TimeoutError):
                said = connection.recv(65_536)
    assert said.startswith(b"HTTP/1.1 408 ")


def _again(tenant: Tenant) -> bytes:
    with upload(tenant) as connection:
        connection.sendall(FORM)
        return connection.recv(65_536)
