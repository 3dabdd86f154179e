"""The calls: what is tried again and how, what is sent, and what is said of a refusal."""

import json
from pathlib import Path

import pytest

from batchmill.client.failure import Failed, Refused, Unreachable, wire
from batchmill.client.http import Client, base_of, connect
from batchmill.client.retry import TRIES, wait_before
from client.odd import Odd, broken, lost, odd_server, refused, text, told


@pytest.mark.parametrize(
    ("server", "base"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"),
        ("https://api.moonshot.cn/v1/", "https://api.moonshot.cn/v1"),
        ("https://host/batchmill", "https://host/batchmill/v1"),
        ("https://host/v1beta/openai", "https://host/v1beta/openai"),
    ],
)
def test_a_server_is_named_with_v1_or_without(server: str, base: str) -> None:
    """A path that names a version stays as it is; any other gets /v1."""
    assert base_of(server) == base


@pytest.mark.parametrize(
    "server", ["127.0.0.1:8000", "ftp://h", "http://", "http://sk-key@h", "http://h/?key=x", "http://h:99999"]
)
def test_what_is_no_server_is_refused(server: str) -> None:
    """Neither a key nor a query stands in the address."""
    with pytest.raises(ValueError, match=r"^(is|has|holds)"):
        base_of(server)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504])
async def test_what_may_pass_is_tried_again(server: tuple[Odd, Client], status: int) -> None:
    """A POST is tried again under one Idempotency-Key, with the key in its header and in no URL."""
    odd, client = server
    odd.answers = [refused(status, Retry_After="7"), lost, told({"id": "batch_1"})]
    assert await client.post("/batches", {"input_file_id": "f"}) == {"id": "batch_1"}
    assert len({request.headers["Idempotency-Key"] for request in odd.asked}) == 1
    assert [json.loads(body) for body in odd.bodies] == [{"input_file_id": "f"}] * 3
    assert {request.headers["Authorization"] for request in odd.asked} == {"Bearer sk-secret"}
    assert not any("sk-secret" in str(request.url) for request in odd.asked)
    assert odd.slept[0] == 7
    assert len(odd.said) == 1
    assert "Trying again in 7 s." in odd.said[0]


@pytest.mark.parametrize(
    ("status", "headers", "code", "tries"),
    [
        (400, {}, None, 1),
        (404, {}, None, 1),
        (507, {"x_should_retry": "false"}, None, 1),
        (400, {"x_should_retry": "true"}, None, TRIES),
        (429, {}, "exceeded_current_quota_error", 1),
        (503, {}, None, TRIES),
    ],
)
async def test_what_will_not_pass_is_not(
    server: tuple[Odd, Client], status: int, headers: dict[str, str], code: str | None, tries: int
) -> None:
    """The server's own word on it comes first; the last refusal is what is raised."""
    odd, client = server
    odd.answers = [refused(status, "it's so", code, **headers)]
    with pytest.raises(Refused, match=rf"^The server answers {status}: it's so\.$"):
        await client.get("/batches")
    assert len(odd.asked) == tries


async def test_an_answer_that_breaks_off_is_asked_for_again(server: tuple[Odd, Client]) -> None:
    """Half an object is none."""
    odd, client = server
    odd.answers = [broken(b'{"id": "batch'), told({"id": "batch_1"})]
    assert await client.get("/batches/batch_1") == {"id": "batch_1"}


async def test_a_file_is_read_anew_for_each_try(server: tuple[Odd, Client], tmp_path: Path) -> None:
    """Each try sends all of it, with its name and a length, and what has been read is told from the start again."""
    odd, client = server
    path, read = tmp_path / "in.jsonl", list[int]()
    path.write_bytes(b"x" * 700_000)
    odd.answers = [refused(503), told({"id": "file_1"})]
    assert await client.upload(path, purpose="batch", told=read.append) == {"id": "file_1"}
    assert [body.count(b"x" * 700_000) for body in odd.bodies] == [1, 1]
    assert all(b'filename="in.jsonl"' in body and b"\r\nbatch\r\n" in body for body in odd.bodies)
    assert all(request.content_length for request in odd.asked)
    assert read.count(700_000) >= 2
    assert max(read) == 700_000


async def test_a_key_goes_to_its_server_alone(server: tuple[Odd, Client]) -> None:
    """A download that is sent on to a bucket is followed without the key, and with the range."""
    odd, client = server
    async with odd_server() as (bucket, _):
        bucket.answers = [text(b"bytes", status=206)]
        port = bucket.port
        odd.answers = [text(b"", status=302, Location=f"http://127.0.0.1:{port}/object?signature=x")]
        async with client.open("GET", "/files/file_1/content", headers={"Range": "bytes=2-"}) as answer:
            assert b"".join([chunk async for chunk in answer.chunks()]) == b"bytes"
        (asked,) = bucket.asked
        assert (asked.headers["Range"], "Authorization" in asked.headers) == ("bytes=2-", False)


async def test_a_server_that_is_away_is_named() -> None:
    """Nobody listens: a few tries, then a sentence with the address."""
    async with connect("http://127.0.0.1:1", key=None, say=lambda _: None, tries=1) as client:
        with pytest.raises(Unreachable, match=r"^http://127\.0\.0\.1:1/v1 cannot be reached: nobody listens there\.$"):
            await client.get("/models")


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"\xff", b"[" * 100_000])
async def test_what_is_no_object_is_no_answer(server: tuple[Odd, Client], body: bytes) -> None:
    """A server of another kind is told from one of the Batch API."""
    odd, client = server
    odd.answers = [text(body)]
    with pytest.raises(Failed, match="no JSON"):
        await client.get("/models")


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (
            b'{"error":{"message":"No such file.","param":"input_file_id","code":"x"}}',
            "No such file (param: input_file_id).",
        ),
        (b'{"error":"flat"}', "flat."),
        (b"<html><head><style>a{}</style></head>\n <b>Bad</b>\n gateway</html>", "Bad gateway."),
        (b"", "no reason given."),
        (b'{"error":{"message":"\\u001b]0;x\\u0007\\u202eevil"}}', r"\x1b]0;x\x07\u202eevil."),
        (b"\xff\x1b[2J", r"�\x1b[2J."),
    ],
)
async def test_a_refusal_is_one_sentence(server: tuple[Odd, Client], body: bytes, sentence: str) -> None:
    """Whatever form it has; nothing in it moves a terminal's cursor."""
    odd, client = server
    odd.answers = [text(body, status=400)]
    with pytest.raises(Refused) as caught:
        await client.get("/x")
    assert str(caught.value) == f"The server answers 400: {sentence}"
    assert json.loads(json.dumps(wire(caught.value)))["error"]["status"] == 400


def test_a_wait_is_what_is_asked_for() -> None:
    """Milliseconds, seconds or a date; a wait of over a minute, or none, is our own backoff instead."""
    assert wait_before(1, {"retry-after-ms": "1500"}, 0) == 1.5
    assert wait_before(1, {"retry-after": "Thu, 01 Jan 1970 00:00:30 GMT"}, 10) == 20
    for odd in ({}, {"retry-after": "3600"}, {"retry-after": "soon"}, {"retry-after": "0"}):
        assert 0.375 <= wait_before(1, odd, 0) <= 0.5
    assert 6 <= wait_before(9, {}, 0) <= 8
