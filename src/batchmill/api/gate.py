"""The gate every request passes: a request id, a key, no Content-Encoding; and our envelope for any fault.

Nothing of a body is read and nothing is written before the key is known (invariant S10).
"""

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import structlog
from starlette.requests import ClientDisconnect

from batchmill.api.answer import error_answer
from batchmill.api.fault import as_api_error, is_broken
from batchmill.clock import Clock
from batchmill.spec import errors
from batchmill.spec.errors import ApiError
from batchmill.spec.ids import is_key, key_digest
from batchmill.store.database import Database
from batchmill.store.organisation import find_caller

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/openapi.json", "/docs"})  # contract, choice 11


class Gate:
    """An ASGI application in front of another.

    Past it, `request.state.organisation_id` is who asks, and `request.state.caller` the digest of the key it asks with.
    `broken` is called when the disk failed beneath a request: the process is to end.
    """

    def __init__(self, app: App, *, database: Database, clock: Clock, broken: Callable[[], None]) -> None:
        self._app = app
        self._database = database
        self._clock = clock
        self._broken = broken
        self._log = structlog.get_logger("api")

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{secrets.token_hex(16)}"
        ids = [(b"x-request-id", request_id.encode()), (b"msh-request-id", request_id.encode())]
        started = ended = False

        async def send_with_id(message: Message) -> None:
            nonlocal started, ended
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", []), *ids]
            elif not message.get("more_body", False):
                ended = True
            await send(message)

        try:
            await self._admit(scope)
            await self._app(scope, receive, send_with_id)
        except ApiError as error:
            await error_answer(error)(scope, receive, send_with_id)
        except ClientDisconnect:
            self._log.info("client went away", request_id=request_id, path=scope["path"])
        except Exception as fault:
            self._note(fault, request_id=request_id, path=scope["path"])
            if started and not ended:
                raise  # the server cuts the connection: a short body must not look whole
            if not started:
                await error_answer(as_api_error(fault))(scope, receive, send_with_id)

    def _note(self, fault: Exception, **facts: str) -> None:
        self._log.error("request failed", exc_info=True, **facts)
        if is_broken(fault):
            self._broken()

    async def _admit(self, scope: Message) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if scope["path"] not in OPEN_PATHS:
            digest, now = _key_digest(headers.get(b"authorization", b"")), int(self._clock.now())
            caller = await self._database.read(lambda tx: find_caller(tx, digest=digest, now=now))
            if caller is None:
                raise errors.unauthenticated()
            scope.setdefault("state", {}).update(organisation_id=caller.organisation_id, caller=digest)
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise errors.unsupported_media_type("Content-Encoding is not supported: send the body as it is.")


def _key_digest(authorization: bytes) -> str:
    scheme, _, credentials = authorization.decode("latin-1").partition(" ")
    key = credentials.strip()
    if scheme.lower() != "bearer" or not is_key(key):
        raise errors.unauthenticated()
    return key_digest(key)
