import json
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from backends.servers import Serve
from batchmill.backends.backend import Call, Reply, Unreachable
from batchmill.backends.http import HttpBackend
from batchmill.backends.transport import Transport
from batchmill.schedule.retry import Fault

KEY = "sk-secret-of-the-house"
CHAT = b'{"id":"c-1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"hi"}}]}'


@pytest.fixture
def backend_at(transport: Transport) -> Callable[..., HttpBackend]:
    """Make a backend that uses the transport under test."""

    def make(url: str, models: tuple[str, ...] = (), key: str | None = None) -> HttpBackend:
        return HttpBackend(url=url, transport=transport, deadline=20.0, models=models, key=key)

    return make


def always(body: bytes, status: int = 200) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Answer everything with the same."""

    async def handler(_request: web.Request) -> web.Response:
        return web.Response(status=status, body=body)

    return handler


def call(body: bytes = b'{"model":"m"}', endpoint: str = "/v1/chat/completions") -> Call:
    """One attempt."""
    return Call(endpoint=endpoint, body=body, request_id="req_1", idempotency_key="line_1")


async def test_a_body_goes_and_comes_byte_for_byte(backend_at: Callable[..., HttpBackend], serve: Serve) -> None:
    """Odd spacing, key order, duplicate keys and number spellings survive in both directions."""
    asked = b'{ "model":"m", "b":1.00,"a" :1e2,"a":2, "u":"\\u4f60\xe4\xbd\xa0" }'
    answered = b'{ "object":"chat.completion","choices":[ {"z":1.50,"a":"\\u00e9"} ] }'
    got: list[bytes] = []

    async def handler(request: web.Request) -> web.Response:
        got.append(await request.read())
        return web.Response(body=answered)

    reply = await backend_at(await serve(handler)).send(call(asked))

    assert [asked] == got
    assert Reply(status=200, body=answered) == reply


async def test_a_call_carries_key_type_and_ids(backend_at: Callable[..., HttpBackend], serve: Serve) -> None:
    """The endpoint is put behind the URL without its /v1, and our headers are there."""
    seen: list[web.Request] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request)
        return web.Response(body=CHAT)

    url = await serve(handler)
    await backend_at(f"{url}/?api-version=3", key=KEY).send(call())

    assert seen[0].path_qs == "/v1/chat/completions?api-version=3"
    assert f"Bearer {KEY}" == seen[0].headers["Authorization"]
    assert seen[0].headers["Content-Type"] == "application/json"
    assert seen[0].headers["Idempotency-Key"] == "line_1"
    assert seen[0].headers["X-Request-Id"] == "req_1"


async def test_without_a_key_none_is_sent(backend_at: Callable[..., HttpBackend], serve: Serve) -> None:
    """A server that wants no key gets no Authorization header."""
    headers: dict[str, str] = {}

    async def handler(request: web.Request) -> web.Response:
        headers.update(request.headers)
        return web.Response(body=CHAT)

    await backend_at(await serve(handler)).send(call())

    assert "Authorization" not in headers


async def test_user_and_password_become_basic_authorization(
    backend_at: Callable[..., HttpBackend], serve: Serve
) -> None:
    """A URL's user and password are sent as such, and are not part of the backend's name."""
    headers: dict[str, str] = {}

    async def handler(request: web.Request) -> web.Response:
        headers.update(request.headers)
        return web.Response(status=400, body=b'{"error": {"message": "your password is open%sesame"}}')

    url = await serve(handler)
    backend = backend_at(url.replace("://", "://ali:open%25sesame@"))
    reply = await backend.send(call())

    assert url == backend.name
    assert headers["Authorization"] == "Basic YWxpOm9wZW4lc2VzYW1l"
    assert reply.body == b'{"error": {"message": "your password is [redacted]"}}'


@pytest.mark.parametrize("status", [200, 400, 401, 500])
async def test_our_key_never_reaches_a_tenant(
    backend_at: Callable[..., HttpBackend], serve: Serve, status: int
) -> None:
    """A reply that quotes the backend's key has it replaced, whatever its status."""
    body = json.dumps({"choices": [], "error": {"message": f"bad key {KEY}"}}).encode()

    reply = await backend_at(await serve(always(body, status)), key=KEY).send(call())

    assert status == reply.status
    assert KEY.encode() not in reply.body
    assert b"bad key [redacted]" in reply.body


async def test_a_key_that_is_a_word_is_not_hunted(backend_at: Callable[..., HttpBackend], serve: Serve) -> None:
    """The usual stand-in for a key is no secret, and honest replies hold the same word."""
    body = b'{"choices":[{"message":{"content":"an EMPTY room"}}]}'

    reply = await backend_at(await serve(always(body)), key="EMPTY").send(call())

    assert body == reply.body


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"<html>busy</html>",
        b'{"choices":[',
        b'{"choices":NaN}',
        b'{"choices":"\xff"}',
        b'data: {"choices":[]}\n\ndata: [DONE]\n\n',
        b'{"error":{"message":"out of memory"}}',
    ],
)
async def test_a_success_that_is_no_object_is_garbled(
    backend_at: Callable[..., HttpBackend], serve: Serve, body: bytes
) -> None:
    """A 2xx without a JSON answer is a fault, with the beginning of what came for people to read."""
    reply = await backend_at(await serve(always(body))).send(call())

    assert (None, Fault.GARBLED, body) == (reply.status, reply.fault, reply.body)


async def test_an_error_that_is_no_json_is_still_an_answer(
    backend_at: Callable[..., HttpBackend], serve: Serve
) -> None:
    """The HTML of a proxy becomes an error object with an excerpt; the status stays."""
    reply = await backend_at(await serve(always(b"<html>Bad\nGateway</html>", 502))).send(call())

    assert reply.status == 502
    assert json.loads(reply.body)["error"]["type"] == "upstream_error"
    assert b"\n" not in reply.body


async def test_a_reply_over_several_lines_becomes_one(backend_at: Callable[..., HttpBackend], serve: Serve) -> None:
    """Raw line breaks between tokens become spaces; nothing else changes."""
    body = b'{\r\n  "choices": [],\n  "text": "a\\nb \xe2\x80\xa8"\n}\n'

    reply = await backend_at(await serve(always(body))).send(call())

    assert b"\n" not in reply.body
    assert json.loads(body) == json.loads(reply.body)


async def test_the_servers_list_gives_the_models(backend_at: Callable[..., HttpBackend], serve: Serve) -> None:
    """GET /models is asked with the key; names come in the server's order, each once."""
    seen: list[web.Request] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request)
        return web.json_response({"object": "list", "data": [{"id": "b"}, {"id": "a", "owned_by": "me"}, {"id": "b"}]})

    backend = backend_at(await serve(handler), key=KEY)

    assert await backend.models() == ("b", "a")
    assert (seen[0].method, seen[0].path) == ("GET", "/v1/models")
    assert f"Bearer {KEY}" == seen[0].headers["Authorization"]


async def test_a_server_without_models_lists_none(backend_at: Callable[..., HttpBackend], serve: Serve) -> None:
    """An empty Ollama says null where others say an empty list."""
    assert await backend_at(await serve(always(b'{"object":"list","data":null}'))).models() == ()


@pytest.mark.parametrize("status", [200, 400, 404, 405, 429])
async def test_configured_models_win(backend_at: Callable[..., HttpBackend], serve: Serve, status: int) -> None:
    """With models of our own choice, a server only has to be there."""
    url = await serve(always(b'{"data":[{"id":"other"}]}', status))

    assert await backend_at(url, models=("mine",)).models() == ("mine",)


@pytest.mark.parametrize("models", [(), ("mine",)])
@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_makes_it_unreachable(
    backend_at: Callable[..., HttpBackend], serve: Serve, status: int, models: tuple[str, ...]
) -> None:
    """A key that is refused is the operator's to mend: the reason says so and does not show the key."""
    backend = backend_at(await serve(always(b"{}", status)), models=models, key=KEY)

    with pytest.raises(Unreachable, match=rf"refused our key \({status}\)") as caught:
        await backend.models()
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"{}", 404, "answered GET /models with status 404"),
        (b"{}", 307, "answered GET /models with status 307"),
        (b"{}", 503, "answered GET /models with status 503"),
        (b"<html>", 200, "no list of models"),
        (b'{"data":[{"id":"a\\u0000"}]}', 200, "names that cannot be shown"),
        (b"{}", 200, "no list of models"),
        (b'{"data":[{"id":7}]}', 200, "no list of models"),
        (b'{"data":[{"id":"\xff"}]}', 200, "no list of models"),
        (b'{"data":[{"id":""}]}', 200, "names of over 512 characters"),
        (b'{"data":[{"id":"%s"}]}' % (b"x" * 513), 200, "names of over 512 characters"),
        (b'{"data":[%s{"id":"x"}]}' % (b'{"id":"x"},' * 10_000), 200, "over 10000 models"),
    ],
)
async def test_no_list_means_unreachable(
    backend_at: Callable[..., HttpBackend], serve: Serve, body: bytes, status: int, reason: str
) -> None:
    """A server that does not list its models in OpenAI's shape says so in one sentence with its name."""
    backend = backend_at(await serve(always(body, status)))

    with pytest.raises(Unreachable, match=reason) as caught:
        await backend.models()
    assert str(caught.value).startswith(backend.name)


async def test_nobody_there_means_unreachable(backend_at: Callable[..., HttpBackend]) -> None:
    """The transport's own reason is passed on."""
    with pytest.raises(Unreachable, match="its host name cannot be resolved"):
        await backend_at("http://no-such-host.invalid/v1").models()


@pytest.mark.parametrize("url", ["gpu:8000/v1", "ftp://gpu/v1", "http:///v1", "http://gpu:99999/v1", "", "file:///etc"])
def test_a_url_that_cannot_be_called_is_refused(backend_at: Callable[..., HttpBackend], url: str) -> None:
    """A wrong URL is told at the start, not at the first line."""
    with pytest.raises(ValueError, match=r"URL|[Pp]ort"):
        backend_at(url)


@pytest.mark.parametrize("key", ["", "two words", "line\r\nX-Evil: 1", "schlüssel"])
def test_a_key_that_cannot_stand_in_a_header_is_refused(backend_at: Callable[..., HttpBackend], key: str) -> None:
    """A key cannot smuggle a header in; the message does not show it."""
    with pytest.raises(ValueError, match="printable ASCII"):
        backend_at("http://gpu/v1", key=key)


def test_a_key_and_a_password_are_one_too_many(backend_at: Callable[..., HttpBackend]) -> None:
    """Which of two credentials to send is not guessed."""
    with pytest.raises(ValueError, match="not both"):
        backend_at("http://ali:sesame@gpu/v1", key=KEY)


def test_a_name_is_free_of_secrets(backend_at: Callable[..., HttpBackend]) -> None:
    """User, password, query and fragment are no part of a name."""
    assert backend_at("http://ali:sesame@gpu:8000/v1/?token=abc#x").name == "http://gpu:8000/v1"
