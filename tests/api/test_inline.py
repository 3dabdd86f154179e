"""Orders that bring their requests: a File and a batch over it, both or neither."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from api.raw import answers, connected, exchange, told
from api.served import Answer, Served, Tenant, pieces
from batchmill.api import maker
from batchmill.backends.router import Router
from batchmill.blobs.blobs import BlobsAway, BlobWriter
from batchmill.blobs.disk import DiskBlobs
from batchmill.blobs.space import Boundless
from batchmill.engine.sweeper import Sweeper
from batchmill.spec.limits import KIMI

ONE = b'{"custom_id":"a","body":{"model":"echo","messages":[{"role":"user","content":"hi"}]}}'
FRONT = b'{"method":"POST","url":"/v1/chat/completions",'


def inline(
    tenant: Tenant, *requests: bytes, rest: bytes = b'"completion_window":"24h"', chunked: bool = False, **headers: str
) -> Answer:
    """Send an order with these requests."""
    body = b'{"requests":[%b],%b}' % (b",".join(requests), rest)
    return tenant.call(
        "POST", "/v1/batches/inline", pieces(body) if chunked else body, Content_Type="application/json", **headers
    )


def nothing(tenant: Tenant) -> bool:
    """Say whether an organisation has neither a File nor a batch."""
    return not tenant.call("GET", "/v1/files").json["data"] and not tenant.call("GET", "/v1/batches").json["data"]


@pytest.mark.parametrize("chunked", [False, True])
def test_requests_become_a_file_and_a_batch(tenant: Tenant, *, chunked: bool) -> None:
    """The File holds each request's own bytes, and is there like any other; the batch is one as create answers it."""
    whole = b'{"url":"/v1/chat/completions", "custom_id":"b" ,"method":"POST","body":{"n":1.50e0,"s":"\xe9\x9b\xa8"}}'
    made = inline(tenant, ONE, whole, rest=b'"completion_window":"3d","metadata":{"k":"v"}', chunked=chunked).json
    assert (made["status"], made["completion_window"], made["metadata"]) == ("validating", "3d", {"k": "v"})
    assert tenant.call("GET", f"/v1/batches/{made['id']}").json == made
    given = tenant.call("GET", f"/v1/files/{made['input_file_id']}").json
    content = tenant.call("GET", f"/v1/files/{given['id']}/content").body
    assert content == FRONT + ONE[1:] + b"\n" + whole + b"\n"
    assert (given["filename"], given["purpose"], given["bytes"]) == ("inline.jsonl", "batch", len(content))
    assert list(tenant.blobs().values()) == [("ready", 2)]


def test_an_order_that_is_sent_again_is_one(tenant: Tenant) -> None:
    """By its key, or by what it says where an official client tries again; another one under the key is a conflict."""
    first = inline(tenant, ONE, Idempotency_Key="k")
    again = inline(tenant, ONE, Idempotency_Key="k")
    assert (again.body, again.headers["x-idempotent-replay"]) == (first.body, "true")
    assert inline(tenant, ONE.replace(b"hi", b"ho"), Idempotency_Key="k").status == 409
    lost = inline(tenant, ONE, x_stainless_retry_count="0")
    retried = inline(tenant, ONE, x_stainless_retry_count="1")
    assert retried.body == lost.body
    assert len(tenant.call("GET", "/v1/batches").json["data"]) == 2
    assert len(tenant.call("GET", "/v1/files").json["data"]) == 2


@pytest.mark.parametrize(
    ("request_", "rest", "param"),
    [
        (b'{"body":{}}', b'"completion_window":"24h"', "requests[1].custom_id"),
        (b'{"custom_id":"b","body":[]}', b'"completion_window":"24h"', "requests[1].body"),
        (b"null", b'"completion_window":"24h"', "requests[1]"),
        (ONE, b'"completion_window":"1h"', "completion_window"),
        (ONE, b'"x":1', "completion_window"),
        (ONE, b'"completion_window":"24h","endpoint":"/x"', "endpoint"),
        (ONE, b'"completion_window":"24h","metadata":{"a":1}', "metadata.a"),
        (b'{"custom_id":"\xff","body":{}}', b'"completion_window":"24h"', None),
        (b'{"custom_id":"b","body":{"a":"\n"}}', b'"completion_window":"24h"', None),
        (b"[" * 100_000, b'"completion_window":"24h"', None),
    ],
)
def test_a_wrong_order_makes_nothing(tenant: Tenant, request_: bytes, rest: bytes, param: str | None) -> None:
    """It is a 400 that names the place, and no row and no byte is written."""
    assert inline(tenant, ONE, request_, rest=rest).error[:3] == (400, "invalid_request_error", param)
    assert nothing(tenant)
    assert tenant.blobs() == {}


def test_a_body_that_is_too_large_is_refused_early(serve: Callable[..., Served]) -> None:
    """By the length that it declares, or when it has come so far; requests have a number that they may be, too."""
    limits = replace(KIMI, max_inline_bytes=2000, max_inline_requests=3)
    tenant = serve(limits=limits).tenant()
    for chunked in (False, True):
        refused = inline(tenant, ONE.replace(b"hi", b"x" * 2000), chunked=chunked)
        assert refused.error[:2] == (400, "invalid_request_error")
        assert "2000" in refused.json["error"]["message"]
    assert inline(tenant, *[ONE] * 4).error[2] == "requests"
    assert nothing(tenant)
    assert inline(tenant, *[ONE] * 3).status == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_just_the_size_is_taken(serve: Callable[..., Served], *, chunked: bool) -> None:
    """And one byte more is not."""
    size = len(b'{"requests":[%b],"completion_window":"24h"}' % ONE)
    tenant = serve(limits=replace(KIMI, max_inline_bytes=size)).tenant()
    assert inline(tenant, ONE.replace(b"hi", b"hii"), chunked=chunked).status == 400
    assert nothing(tenant)
    assert inline(tenant, ONE, chunked=chunked).status == 200


def test_who_asks_before_it_sends_is_told_before_it_does(tenant: Tenant) -> None:
    """`Expect: 100-continue`: a body that is too large never goes out, another one is asked for."""
    body = b'{"requests":[%b],"completion_window":"24h"}' % ONE

    def head(size: int) -> bytes:
        return (
            f"POST /v1/batches/inline HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {tenant.key}\r\n"
            f"Expect: 100-continue\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n"
        ).encode()

    (refused,) = exchange(tenant.served, head(KIMI.max_inline_bytes + 1))
    assert (refused.status, refused.headers["connection"]) == (400, "close")
    with connected(tenant.served) as connection:
        connection.sendall(head(len(body)))
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert [answer.status for answer in answers(told(connection))] == [200]


def test_a_quota_counts_for_requests_too(served: Served) -> None:
    """An organisation that may have no more Files gets neither File nor batch."""
    tenant = served.tenant(max_files=1)
    assert inline(tenant, ONE).status == 200
    assert inline(tenant, ONE.replace(b"hi", b"ho")).error[0] == 400
    assert len(tenant.call("GET", "/v1/batches").json["data"]) == 1
    assert sorted(state for state, _ in tenant.blobs().values()) == ["doomed", "ready"]


def test_a_write_that_fails_leaves_nothing(
    serve: Callable[..., Served], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A 503, and what was written goes; the same key is good for the next try."""

    class Failing(DiskBlobs):
        fails = True

        def writer(self, key: str) -> BlobWriter:
            if self.fails:
                raise BlobsAway("away")
            return super().writer(key)

    blobs = Failing(folder=tmp_path_factory.mktemp("blobs"))
    tenant = serve(blobs=blobs).tenant()
    assert inline(tenant, ONE, Idempotency_Key="k").status == 503
    assert nothing(tenant)
    blobs.fails = False
    assert inline(tenant, ONE, Idempotency_Key="k").status == 200
    tenant.served.sweep()
    assert list(tenant.blobs().values()) == [("ready", 2)]


def test_who_dies_in_the_middle_leaves_nothing(serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that were durable and had no row in the end are swept an hour later; no batch points at them."""
    served = serve()
    tenant = served.tenant()

    def dies(*_: object, **__: object) -> None:
        raise MemoryError("power cut")

    with monkeypatch.context() as patched:
        patched.setattr(maker, "publish_file", dies)
        patched.setattr(maker, "give_up", lambda *_: None)  # who is dead gives nothing up
        assert inline(tenant, ONE).status == 500
    assert [state for state, _ in tenant.blobs().values()] == ["writing"]
    assert len(tenant.bytes_on_disk()) == 1
    assert nothing(tenant)
    sweeper = Sweeper(
        database=served.database, blobs=served.blobs, room=Boundless(), router=Router([]), clock=served.clock
    )
    served.clock.time, served.clock.uptime = served.clock.time + 3700, served.clock.uptime + 3700
    for _ in range(3):
        served.run(sweeper.step())
    assert (tenant.blobs(), tenant.bytes_on_disk()) == ({}, set())


def test_requests_run_like_any_file(tenant: Tenant) -> None:
    """The strict client takes the batch."""
    batch_id = inline(tenant, ONE).json["id"]
    with tenant.openai() as client:
        assert client.batches.retrieve(batch_id).input_file_id.startswith("file_")


def test_every_line_of_ten_thousand_is_kept(tenant: Tenant) -> None:
    """As many as there may be, spread over lines of their own: none is lost and none is changed."""
    requests = [json.dumps({"custom_id": f"r-{n}", "body": {"n": n}}, indent=1).encode() for n in range(10_000)]
    made = inline(tenant, *requests).json
    content = tenant.call("GET", f"/v1/files/{made['input_file_id']}/content").body.splitlines()
    assert [line.replace(b" ", b"") for line in content] == [
        (FRONT + each[1:]).replace(b"\n", b"").replace(b" ", b"") for each in requests
    ]
