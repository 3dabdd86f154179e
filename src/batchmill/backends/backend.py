"""What every backend is: a name, a list of models, and one call in, one Reply out."""

from typing import Protocol

import msgspec

from batchmill.schedule.retry import Fault
from batchmill.schedule.window import Gauges

__all__ = ["Backend", "Call", "Reply", "Unreachable"]


class Call(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One attempt at one Request.

    Attributes:
        endpoint: The line's endpoint, such as "/v1/chat/completions".
        body: The request body, byte for byte as the user wrote it.
        request_id: Our name for this attempt, sent along as X-Request-Id.
        idempotency_key: The same for every attempt at this line.
        once: Send it at most once, also where a connection turns out to have been closed.
        traceparent: Names the trace that it is part of, sent along; None: of none.
    """

    endpoint: str
    body: bytes
    request_id: str
    idempotency_key: str
    once: bool = False
    traceparent: str | None = None


class Reply(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What came back: an HTTP answer, or a fault, never both.

    Attributes:
        status: The HTTP status; None where `fault` says why there is none that counts.
        body: The body as it is to be stored; with a garbled reply its beginning, for people to look at.
        fault: What went wrong on the way; None where there is an answer.
        retry_after: Seconds that the backend asked us to wait, not capped; None where it did not say.
        detail: The fault in plain words, free of secrets; "" where there is none.
        resent: How often the transport sent it again of itself, where a connection that had been used before was
            closed without a byte of a reply: a server may have seen the request so many times more.
    """

    status: int | None = None
    body: bytes = b""
    fault: Fault | None = None
    retry_after: float | None = None
    detail: str = ""
    resent: int = 0


class Unreachable(Exception):  # noqa: N818 - it names the state of a backend, as the batch's "why it waits" does
    """A backend could not tell its models; the message says why in one sentence, free of secrets."""


class Backend(Protocol):
    """One place where a Request can be sent."""

    @property
    def name(self) -> str:
        """What people call it: shown in reasons and metrics, free of secrets."""

    async def models(self) -> tuple[str, ...]:
        """The names of the models that it serves now.

        Raises:
            Unreachable: It does not answer, refuses us, or answers nonsense.
        """

    async def gauges(self) -> Gauges | None:
        """What it says of itself now; None where it says nothing that we know."""

    async def send(self, call: Call) -> Reply:
        """Make one attempt. Whatever the backend does is in the Reply; only a cancel is raised."""

    async def close(self) -> None:
        """Let go of connections. A second call does nothing."""
