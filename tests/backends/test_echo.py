import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion

from batchmill.backends.backend import Call, Reply
from batchmill.backends.echo import EchoBackend
from fakeclock import FakeClock, settle


def call(body: object, endpoint: str = "/v1/chat/completions") -> Call:
    """One attempt, its body encoded."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Call(endpoint=endpoint, body=raw, request_id="req_1", idempotency_key="line_1")


def chat(content: object = "Say hello", model: str = "m") -> dict[str, object]:
    """A request body."""
    return {
        "model": model,
        "messages": [{"role": "system", "content": "Be brief"}, {"role": "user", "content": content}],
    }


async def test_chat_echoes_the_last_user_message(clock: FakeClock) -> None:
    """The answer is a chat completion of the asked model, with usage counted in words."""
    reply = await EchoBackend(clock=clock).send(call(chat()))

    completion = ChatCompletion.model_validate_json(reply.body, strict=True)
    assert reply.status == 200
    assert completion.choices[0].message.content == "echo: Say hello"
    assert completion.model == "m"
    assert completion.usage is not None
    assert (
        completion.usage.prompt_tokens,
        completion.usage.completion_tokens,
        completion.usage.total_tokens,
    ) == (4, 3, 7)


async def test_content_may_come_in_parts(clock: FakeClock) -> None:
    """Text parts are joined; other parts are passed over."""
    parts = [
        {"type": "text", "text": "你好"},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "text", "text": " world"},
    ]

    reply = await EchoBackend(clock=clock).send(call(chat(parts)))

    assert json.loads(reply.body)["choices"][0]["message"]["content"] == "echo: 你好 world"


async def test_the_same_body_gets_the_same_bytes(clock: FakeClock) -> None:
    """Answers do not depend on time or chance; another body gets another id."""
    echo = EchoBackend(clock=clock)
    first = await echo.send(call(chat()))
    await clock.advance(1_000)
    again = await echo.send(call(chat()))
    other = await echo.send(call(chat("Say bye")))

    assert first == again
    assert json.loads(first.body)["id"] != json.loads(other.body)["id"]


async def test_completions_echo_the_prompt(clock: FakeClock) -> None:
    """/v1/completions has its own shape."""
    reply = await EchoBackend(clock=clock).send(call({"model": "m", "prompt": "one two"}, "/v1/completions"))

    assert Completion.model_validate_json(reply.body, strict=True).choices[0].text == "echo: one two"


async def test_embeddings_depend_on_the_text_only(clock: FakeClock) -> None:
    """Equal texts get equal unit vectors, in the order of the input."""
    body = {"model": "m", "input": ["a", "b", "a"]}
    reply = await EchoBackend(clock=clock).send(call(body, "/v1/embeddings"))

    vectors = [row.embedding for row in CreateEmbeddingResponse.model_validate_json(reply.body, strict=True).data]
    assert vectors[0] == vectors[2] != vectors[1]
    assert pytest.approx(sum(number * number for number in vectors[0])) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"model":"m"}',
        b'{"model":1,"messages":[]}',
        b'{"model":"m","messages":7}',
        b'{"model":"m","messages":[{"content":"x"}]}',
        b'{"model":"m","messages":[],"x":"\xff"}',
        b'{"model":"m","messages":' + b"[" * 100_000,
    ],
)
async def test_a_body_that_it_cannot_read_gets_400(clock: FakeClock, body: bytes) -> None:
    """The refusal is an error object in OpenAI's shape."""
    reply = await EchoBackend(clock=clock).send(call(body))

    assert reply.status == 400
    assert json.loads(reply.body)["error"]["type"] == "invalid_request_error"


@settings(max_examples=40)
@given(st.binary() | st.recursive(st.none() | st.text(), st.lists).map(lambda c: json.dumps(chat(c)).encode()))
def test_no_body_breaks_it(body: bytes) -> None:
    """Every body gets 200 or 400 and a JSON object."""
    reply = asyncio.run(EchoBackend(clock=FakeClock()).send(call(body)))

    assert reply.status in (200, 400)
    assert isinstance(json.loads(reply.body), dict)


async def test_other_endpoints_get_404(clock: FakeClock) -> None:
    """It serves three endpoints and says so."""
    reply = await EchoBackend(clock=clock).send(call(chat(), "/v1/moderations"))

    assert reply.status == 404
    assert "/v1/moderations" in json.loads(reply.body)["error"]["message"]


async def test_latency_is_waited_on_the_clock(clock: FakeClock) -> None:
    """The answer comes when the clock has moved on by the latency, not sooner."""
    echo = EchoBackend.parse("echo:?latency_ms=50", clock=clock)
    attempt = asyncio.create_task(echo.send(call(chat())))

    await clock.advance(0.049)
    assert not attempt.done()
    await clock.advance(0.002)
    await settle()
    assert isinstance(attempt.result(), Reply)


@pytest.mark.parametrize(
    ("url", "models"),
    [
        ("echo:", ("echo",)),
        ("echo:#a", ("a",)),
        ("echo:?latency_ms=0.5#a,org/b%2Cc", ("a", "org/b,c")),
    ],
)
async def test_a_url_names_the_models(clock: FakeClock, url: str, models: tuple[str, ...]) -> None:
    """The fragment lists the models; without one there is a model called echo."""
    assert models == await EchoBackend.parse(url, clock=clock).models()


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("echo:?latency_ms=fast", "latency_ms"),
        ("echo:?latency_ms=-1", "latency_ms"),
        ("echo:?latency_ms=nan", "latency_ms"),
        ("echo:?latency_ms=inf", "latency_ms"),
        ("echo:?latency_ms=", "latency_ms"),
        ("echo:?latency=5", "'latency'"),
        ("echo:#a,,b", "names"),
        ("echo://host", "echo backend"),
        ("echo:path", "echo backend"),
        ("http://echo", "echo backend"),
    ],
)
def test_a_wrong_url_is_refused_by_name(clock: FakeClock, url: str, named: str) -> None:
    """The message names the option that is wrong."""
    with pytest.raises(ValueError, match=named):
        EchoBackend.parse(url, clock=clock)
