"""The gate every request passes: an id, a key that may, a rate, no Content-Encoding; and our envelope for any fault.

Nothing of a body is read and nothing is written before the key is known (invariant S10).
"""

from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

import structlog
from starlette.requests import ClientDisconnect

from batchmill.api.answer import error_answer, request_id_headers
from batchmill.api.auth import Auth
from batchmill.api.body import Body
from batchmill.api.fault import AWAY, as_api_error, is_broken
from batchmill.api.rate import Rate
from batchmill.api.told import Seen, Told
from batchmill.clock import Clock
from batchmill.spec import errors
from batchmill.spec.errors import ApiError
from batchmill.spec.limits import Limits
from batchmill.spec.scopes import scope_needed
from batchmill.store.database import Database
from batchmill.telemetry import UNTRACED

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/openapi.json", "/docs"})  # contract, choice 11
DOCS_ASSETS = "/docs/assets"  # below it are the files that the page loads, open too


class Gate:
    """An ASGI application in front of another.

    Past it, `request.state.organisation_id` is who asks, `request.state.key_id` the key it asks with and
    `request.state.caller` that key's digest, `request.state.scopes` what the key may do, and `request.state.allowance`
    what the organisation may use. An answer that goes on for long asks `request.state.still_admitted` now and then
    whether that key would still be let in.
    `calls` holds the organisations that have a limit to it.
    `broken` is called when the disk failed beneath a request: the process is to end.
    `open_paths` are asked for without a key.
    """

    def __init__(
        self,
        app: App,
        *,
        database: Database,
        clock: Clock,
        limits: Limits,
        calls: Rate,
        broken: Callable[[], None],
        told: Told | None = None,
        open_paths: Collection[str] = OPEN_PATHS,
    ) -> None:
        self._app = app
        self._auth = Auth(database=database, clock=clock, limits=limits)
        self._calls = calls
        self._limits = limits
        self._broken = broken
        self._told = told or Told(traces=UNTRACED, clock=clock, access_log=False)
        self._open_paths = open_paths
        self._log = structlog.get_logger("api")

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        added = request_id_headers()
        with self._told.request(scope, added[0][1].decode()) as seen:
            await self._answer(scope, receive, send, added=added, seen=seen)

    async def _answer(
        self, scope: Message, receive: Receive, send: Send, *, added: list[tuple[bytes, bytes]], seen: Seen
    ) -> None:
        request_id = added[0][1].decode()
        started = ended = False
        body = Body(receive=receive, headers=dict(scope["headers"]), limits=self._limits)

        async def send_with_id(message: Message) -> None:
            nonlocal started, ended
            if message["type"] == "http.response.start":
                started, seen.status = True, message["status"]
                message["headers"] = [*message.get("headers", []), *added, *body.headers()]
            elif not message.get("more_body", False):
                ended = True
                message = await body.let_go(send, message)
            await send(message)

        try:
            await self._admit(scope, added, body)
            await self._app(scope, body.receive, send_with_id)
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
        if isinstance(fault, AWAY):  # in an outage every request says the same
            self._log.warning("request failed", reason=str(fault), **facts)
            return
        self._log.error("request failed", exc_info=True, **facts)
        if is_broken(fault):
            self._broken()

    async def _admit(self, scope: Message, added: list[tuple[bytes, bytes]], body: Body) -> None:
        """Refuse what may not pass; `added` gains the headers that tell of an organisation's rate."""
        if scope["path"] not in self._open_paths and not scope["path"].startswith(f"{DOCS_ASSETS}/"):
            caller = await self._auth.caller(scope)
            body.admitted = True
            per_minute = caller.allowance.requests_per_minute
            if per_minute is not None:
                taken = await self._calls.take(caller.organisation_id, per_minute=per_minute)
                added += taken.headers()
                if not taken.allowed:
                    raise errors.rate_limited(taken.wait)
            needed = scope_needed(scope["method"], scope["path"])
            # Known before any object is looked for (invariant S1).
            if needed is not None and needed not in caller.scopes:
                raise errors.permission_denied(f"This key lacks the scope '{needed}'.")
            scope.setdefault("state", {}).update(
                organisation_id=caller.organisation_id,
                key_id=caller.key_id,
                caller=caller.digest,
                scopes=caller.scopes,
                allowance=caller.allowance,
                still_admitted=lambda: self._still_admits(scope),
            )
        if "\0" in scope["path"]:  # nothing has such an id, and PostgreSQL cannot even be asked for one
            raise errors.not_found("object")
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise errors.unsupported_media_type("Content-Encoding is not supported: send the body as it is.")

    async def _still_admits(self, scope: Message) -> bool:
        caller, needed = await self._auth.still(scope), scope_needed(scope["method"], scope["path"])
        return caller is not None and (needed is None or needed in caller.scopes)
