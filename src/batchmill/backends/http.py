"""Any OpenAI-compatible inference server, reached over HTTP."""

import base64
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec

from batchmill.backends.backend import Call, Reply, Unreachable
from batchmill.backends.gauges import read_gauges
from batchmill.backends.transport import Transport
from batchmill.schedule.retry import Fault
from batchmill.schedule.window import Gauges
from batchmill.spec.results import body_of_reply

__all__ = ["HttpBackend"]

_MODELS_SECONDS: Final = 10.0  # a list of names is quick, or something is wrong
_GAUGES_SECONDS: Final = 2.0  # what is older says little
_MAX_GAUGES: Final = 1 << 20  # bytes; vLLM's page has some 50 KB
_MAX_MODELS: Final = 10_000
_MAX_MODEL_CHARS: Final = 512
_EXCERPT_BYTES: Final = 2_000  # of a garbled reply, kept for people
_SHORTEST_SECRET: Final = 8  # shorter keys ("x", "EMPTY") are no secrets, and would be found in honest replies
_REDACTED: Final = b"[redacted]"


class _Model(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_Model] | None  # null from an Ollama without models


def name_of(url: str) -> str:
    """Return what the backend at this URL is called: the URL without user, password and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")


class HttpBackend:
    """One server at one URL.

    Bodies go out and come back as they are; only our own key is taken out of what comes back.
    """

    def __init__(
        self, *, url: str, transport: Transport, deadline: float, models: tuple[str, ...] = (), key: str | None = None
    ) -> None:
        """Nothing is sent before the first call.

        Args:
            url: The API's root, such as "http://gpu-1:8000/v1". A query is sent along with every call; a user and
                password become basic authorization.
            transport: Carries the requests; closed with this backend.
            deadline: Seconds for one attempt, from the connect to the last byte.
            models: The models to serve; () asks the server for its list.
            key: Sent as a bearer token; None sends none.

        Raises:
            ValueError: The URL is not http(s), or the key cannot stand in a header.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:  # port checks its range
            raise ValueError("A backend's URL begins with http:// or https:// and a host.")
        if key is not None and not (key.isascii() and key.isprintable() and key and " " not in key):
            raise ValueError("A backend's key is printable ASCII without spaces.")
        if key is not None and parts.username is not None:
            raise ValueError("A backend has a key, or a user and password in its URL, not both.")
        self.name: Final = name_of(url)
        self._query = f"?{parts.query}" if parts.query else ""
        self._transport = transport
        self._deadline = deadline
        self._models = models
        self._authorization = {} if key is None else {"Authorization": f"Bearer {key}"}
        secrets = [key or "", unquote(parts.password or "")]
        if parts.username is not None:
            basic = _basic(parts)
            self._authorization = {"Authorization": f"Basic {basic}"}
            secrets.append(basic)
        self._headers = {**self._authorization, "Content-Type": "application/json"}
        self._secrets = tuple(secret.encode() for secret in secrets if len(secret) >= _SHORTEST_SECRET)

    async def models(self) -> tuple[str, ...]:
        """The models that were configured, else those that the server lists; it is asked in either case.

        Raises:
            Unreachable: It does not answer, refuses our key, or lists no models that we can read.
        """
        reply = await self._transport.request(
            method="GET",
            url=f"{self.name}/models{self._query}",
            headers=self._authorization,
            body=None,
            deadline=min(self._deadline, _MODELS_SECONDS),
        )
        status = reply.status
        if status is None:
            raise Unreachable(f"{self.name}: {reply.detail}")
        if status in (401, 403):
            raise Unreachable(f"{self.name} refused our key ({status})")
        if self._models and 200 <= status < 500 and not 300 <= status < 400:  # noqa: PLR2004 - HTTP's own classes
            return self._models  # many a server has no /models; it is there, that will do
        if not 200 <= status < 300:  # noqa: PLR2004 - HTTP's own classes
            raise Unreachable(f"{self.name} answered GET /models with status {status}")
        return self._listed(reply.body)

    async def gauges(self) -> Gauges | None:
        """What `/metrics` at the server's root says, as vLLM, SGLang and llama.cpp have it; None if nothing."""
        reply = await self._transport.request(
            method="GET",
            url=f"{self.name.removesuffix('/v1')}/metrics{self._query}",
            headers=self._authorization,
            body=None,
            deadline=min(self._deadline, _GAUGES_SECONDS),
        )
        if reply.status != 200 or len(reply.body) > _MAX_GAUGES:  # noqa: PLR2004 - HTTP's own OK
            return None
        return read_gauges(reply.body.decode(errors="replace"))

    async def send(self, call: Call) -> Reply:
        """Make one attempt; the body goes as it is, the reply's body is ready to be stored."""
        headers = {**self._headers, "Idempotency-Key": call.idempotency_key, "X-Request-Id": call.request_id}
        if call.traceparent is not None:
            headers["traceparent"] = call.traceparent
        reply = await self._transport.request(
            method="POST",
            url=f"{self.name}{call.endpoint.removeprefix('/v1')}{self._query}",
            headers=headers,
            body=call.body,
            deadline=self._deadline,
            once=call.once,
        )
        if reply.status is None:
            return reply
        raw = self._redact(reply.body) if self._secrets else reply.body
        body = body_of_reply(raw, reply.status)
        if body is reply.body:  # nearly always
            return reply
        if body is None:
            detail = f"status {reply.status} with a body that is not a usable JSON object"
            return Reply(fault=Fault.GARBLED, body=raw[:_EXCERPT_BYTES], detail=detail, resent=reply.resent)
        return Reply(status=reply.status, body=body, retry_after=reply.retry_after, resent=reply.resent)

    async def close(self) -> None:
        """Close the transport."""
        await self._transport.close()

    def _listed(self, body: bytes) -> tuple[str, ...]:
        try:
            listed = msgspec.json.decode(body, type=_ModelList).data or []
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise Unreachable(f"{self.name} answered GET /models with something that is no list of models") from None
        if len(listed) > _MAX_MODELS or any(not 0 < len(model.id) <= _MAX_MODEL_CHARS for model in listed):
            raise Unreachable(
                f"{self.name} lists over {_MAX_MODELS} models, or names of over {_MAX_MODEL_CHARS} characters"
            )
        if not all(model.id.isprintable() for model in listed):  # a row takes no NUL, and a table no line break
            raise Unreachable(f"{self.name} lists models with names that cannot be shown")
        return tuple(dict.fromkeys(model.id for model in listed))

    def _redact(self, body: bytes) -> bytes:
        """A server that puts our key into its error would hand it to the tenant."""
        for secret in self._secrets:
            body = body.replace(secret, _REDACTED)
        return body


def _basic(parts: SplitResult) -> str:
    pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return base64.b64encode(pair.encode()).decode()
