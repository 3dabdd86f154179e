"""A backend in our own process that answers with the prompt: for demos, tests and dry runs."""

import hashlib
import math
from typing import Final, Self
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from batchmill.backends.backend import Call, Reply
from batchmill.clock import Clock

__all__ = ["EchoBackend"]

_CREATED: Final = 1_700_000_000  # the same body gets the same bytes, so no clock here
_DIMENSIONS: Final = 8


class _Part(msgspec.Struct):
    type: str
    text: str = ""


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None

    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class _Chat(msgspec.Struct):
    model: str
    messages: list[_Message]


class _Completion(msgspec.Struct):
    model: str
    prompt: str


class _Embedding(msgspec.Struct):
    model: str
    input: str | list[str]


class EchoBackend:
    """Answers "echo: " and the last user message. The same body always gets the same bytes back."""

    def __init__(self, *, clock: Clock, latency: float = 0.0, models: tuple[str, ...] = ("echo",)) -> None:
        """Set it up; it opens nothing.

        Args:
            clock: Owns the waiting.
            latency: Seconds before each answer.
            models: The names that it lists. It answers for any name, as it is asked.
        """
        self.name: Final = "echo:"
        self._clock = clock
        self._latency = latency
        self._models = models

    @classmethod
    def parse(cls, url: str, *, clock: Clock) -> Self:
        """Read a URL such as "echo:?latency_ms=50#model-a,model-b".

        Raises:
            ValueError: It is no such URL; the message names the option that is wrong.
        """
        parts = urlsplit(url)
        if parts.scheme != "echo" or parts.netloc or parts.path:
            raise ValueError(f"{url!r} is not an echo backend: write echo:?latency_ms=50#model-a,model-b")
        latency = 0.0
        for option, value in parse_qsl(parts.query, keep_blank_values=True):
            if option != "latency_ms":
                raise ValueError(f"The echo backend knows latency_ms, not {option!r}.")
            latency = _milliseconds(value) / 1000
        if not parts.fragment:
            return cls(clock=clock, latency=latency)
        models = tuple(unquote(model) for model in parts.fragment.split(","))
        if not all(models):
            raise ValueError("The echo backend's models are names with commas between: echo:#model-a,model-b")
        return cls(clock=clock, latency=latency, models=models)

    async def models(self) -> tuple[str, ...]:
        """The names that it was given."""
        return self._models

    async def gauges(self) -> None:
        """Nothing: it has no slots."""

    async def send(self, call: Call) -> Reply:
        """Answer chat completions, completions and embeddings; 404 for other endpoints, 400 for odd bodies."""
        if self._latency:
            await self._clock.sleep(self._latency)
        answer = _ANSWERS.get(call.endpoint)
        if answer is None:
            return _refusal(404, f"The echo backend does not serve {call.endpoint}.")
        try:
            call.body.decode()  # msgspec does not look at the UTF-8 of what it skips
            body = msgspec.json.encode(answer(call.body))
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            return _refusal(400, f"The echo backend cannot read the body: {str(error)[:200]}")
        return Reply(status=200, body=body)

    async def close(self) -> None:
        """Nothing is open."""


def _milliseconds(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError(f"The echo backend's latency_ms is a number, zero or more, not {value!r}.")
    return number


def _refusal(status: int, message: str) -> Reply:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return Reply(status=status, body=msgspec.json.encode({"error": error}))


def _id(prefix: str, body: bytes) -> str:
    return f"{prefix}-{hashlib.sha256(body).hexdigest()[:24]}"


def _tokens(text: str) -> int:
    return len(text.split())


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _chat(body: bytes) -> dict[str, object]:
    chat = msgspec.json.decode(body, type=_Chat)
    asked = [message.text() for message in chat.messages if message.role == "user"]
    text = f"echo: {asked[-1] if asked else ''}"
    message = {"role": "assistant", "content": text, "refusal": None}
    return {
        "id": _id("chatcmpl", body),
        "object": "chat.completion",
        "created": _CREATED,
        "model": chat.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": _usage(sum(_tokens(message.text()) for message in chat.messages), _tokens(text)),
    }


def _completion(body: bytes) -> dict[str, object]:
    completion = msgspec.json.decode(body, type=_Completion)
    text = f"echo: {completion.prompt}"
    return {
        "id": _id("cmpl", body),
        "object": "text_completion",
        "created": _CREATED,
        "model": completion.model,
        "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": "stop"}],
        "usage": _usage(_tokens(completion.prompt), _tokens(text)),
    }


def _embedding(body: bytes) -> dict[str, object]:
    order = msgspec.json.decode(body, type=_Embedding)
    texts = [order.input] if isinstance(order.input, str) else order.input
    prompt = sum(map(_tokens, texts))
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": _vector(text)} for i, text in enumerate(texts)],
        "model": order.model,
        "usage": {"prompt_tokens": prompt, "total_tokens": prompt},
    }


def _vector(text: str) -> list[float]:
    """A unit vector that only the text decides."""
    raw = [byte - 127.5 for byte in hashlib.sha256(text.encode()).digest()[:_DIMENSIONS]]
    length = math.hypot(*raw)
    return [number / length for number in raw]


_ANSWERS: Final = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completion,
    "/v1/embeddings": _embedding,
}
