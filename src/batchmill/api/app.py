"""The whole API as one ASGI application."""

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any

from fastapi import Request, Response
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.routing import Match, Mount

from batchmill.api.account import account_routes
from batchmill.api.answer import error_answer
from batchmill.api.backends import backend_routes
from batchmill.api.batches import batch_routes
from batchmill.api.document import openapi
from batchmill.api.events import Streams
from batchmill.api.fault import as_api_error
from batchmill.api.files import file_routes
from batchmill.api.gate import DOCS_ASSETS, OPEN_PATHS, App, Gate
from batchmill.api.health import health_routes
from batchmill.api.inline import inline_routes
from batchmill.api.keys import key_routes
from batchmill.api.maker import FileMaker
from batchmill.api.models import model_routes
from batchmill.api.progress import progress_routes
from batchmill.api.quote import quote_routes
from batchmill.api.rate import Buckets, Rate
from batchmill.api.replay import Replays
from batchmill.api.results import result_routes
from batchmill.api.retry import retry_routes
from batchmill.api.slots import Slots
from batchmill.api.steer import steer_routes
from batchmill.api.told import Told
from batchmill.api.webhooks import delivery_routes, webhook_routes
from batchmill.blobs.blobs import Blobs
from batchmill.blobs.space import Room
from batchmill.clock import Clock
from batchmill.ledger.page import Pages
from batchmill.spec import errors
from batchmill.spec.errors import ApiError
from batchmill.spec.limits import Limits
from batchmill.spec.models import NOTHING_CONFIGURED, Catalogue
from batchmill.store.database import Database
from batchmill.telemetry import UNTRACED, Traces

Page = Callable[[Request], Awaitable[Response]]

_METHODS = ("DELETE", "GET", "HEAD", "POST")
_POST_ONLY = ("/v1/batches/quote", "/v1/batches/inline")  # no batch has such an id
_NO_PAGES: Mapping[str, Page] = MappingProxyType({})


def create_app(
    *,
    database: Database,
    blobs: Blobs,
    room: Room,
    clock: Clock,
    limits: Limits,
    version: str,
    broken: Callable[[], None],
    retention: int | None = None,
    redirect: bool = False,
    catalogue: Catalogue = NOTHING_CONFIGURED,
    apart: bool = False,
    public_webhooks: bool = True,
    calls: Rate | None = None,
    stopping: Callable[[], bool] = lambda: False,
    traces: Traces | None = None,
    access_log: bool = False,
    pages: Mapping[str, Page] = _NO_PAGES,
) -> App:
    """Build the API: the contract's routes, models, the account, and health.

    `broken` as in `Gate`, `retention` in seconds.
    `stopping` says that the process is to end: then answers that would go on for long do.
    `redirect`: a download is sent on to the bucket, where there is one.
    `public_webhooks`: events go to public hosts only.
    `calls`: where the calls of organisations are counted, if not in this process's memory.
    `pages`: what else is answered, by its path, to GET and HEAD, and without a key: the dashboard's files.
    """
    app = FastAPIOffline(  # its page loads nothing from any other host
        title="Batchmill", version=version, redoc_url=None, static_url=DOCS_ASSETS, redirect_slashes=False
    )
    shared: dict[str, Any] = {
        "database": database,
        "room": room,
        "clock": clock,
        "limits": limits,
        "replays": Replays(database=database, clock=clock, limits=limits),
    }
    app.include_router(file_routes(blobs=blobs, retention=retention, redirect=redirect, **shared))
    maker = FileMaker(blobs=blobs, retention=retention, **shared)
    app.include_router(inline_routes(maker=maker))
    app.include_router(quote_routes(maker=maker, catalogue=catalogue))
    for path in _POST_ONLY:
        app.add_route(path, _post_only, methods=["GET"])
    app.include_router(batch_routes(catalogue=catalogue, **shared))
    app.include_router(webhook_routes(public_only=public_webhooks, **shared))
    app.include_router(delivery_routes(database=database, clock=clock, limits=limits))
    app.include_router(steer_routes(database=database, room=room, clock=clock, limits=limits, catalogue=catalogue))
    slots = Slots(each=limits.max_streams_per_key, most=limits.max_streams)
    streams = Streams(clock=clock, slots=slots, stopping=stopping)
    app.include_router(progress_routes(database=database, clock=clock, streams=streams, catalogue=catalogue))
    scans = Slots(each=limits.max_scans_per_key, most=limits.max_scans)  # one for both: they share the threads
    app.include_router(
        result_routes(
            database=database,
            blobs=blobs,
            pages=Pages(database=database, blobs=blobs, clock=clock),
            streams=streams,
            clock=clock,
            limits=limits,
            scans=scans,
            stopping=stopping,
        )
    )
    app.include_router(retry_routes(blobs=blobs, retention=retention, scans=scans, **shared))
    app.include_router(model_routes(database=database, catalogue=catalogue))
    app.include_router(account_routes(database=database, clock=clock, limits=limits, catalogue=catalogue))
    app.include_router(key_routes(**shared))
    app.include_router(backend_routes(database=database))
    app.include_router(health_routes(database=database, blobs=blobs, clock=clock, apart=apart))
    for path, page in pages.items():
        app.router.add_route(path, page, methods=["GET"], include_in_schema=False)
    document = openapi(version=version, limits=limits)
    app.openapi = lambda: document  # type: ignore[method-assign] # the framework's own way to bring a document
    app.add_exception_handler(HTTPException, _routing_answer)
    app.add_exception_handler(ApiError, _fault_answer)
    app.add_exception_handler(Exception, _fault_answer)  # answered here, then raised again: the gate logs it
    calls = calls or Buckets(clock=clock)
    told = Told(traces=traces or UNTRACED, clock=clock, access_log=access_log)
    return Gate(
        app,
        database=database,
        clock=clock,
        limits=limits,
        calls=calls,
        broken=broken,
        told=told,
        open_paths=OPEN_PATHS | pages.keys(),
    )


async def _fault_answer(_request: Request, fault: Exception) -> Response:
    return error_answer(as_api_error(fault))


async def _post_only(_request: Request) -> Response:
    raise errors.method_not_allowed(["POST"])


async def _routing_answer(request: Request, fault: Exception) -> Response:
    """Turn the framework's own 404 and 405 into our envelope."""
    if isinstance(fault, HTTPException) and fault.status_code == 405:  # noqa: PLR2004 - method not allowed
        return error_answer(errors.method_not_allowed(_allowed(request)))
    if isinstance(fault, HTTPException) and fault.status_code == 404:  # noqa: PLR2004 - not found
        return error_answer(errors.unknown_route())
    raise fault


def _allowed(request: Request) -> list[str]:
    """Return every method of a path; the framework names those of the first route that has the path.

    A path that the document names as it is, such as `/v1/batches/quote`, is no batch's.
    """
    if named := request.app.openapi()["paths"].get(request.scope["path"]):
        return [method for method in _METHODS if method.lower() in named]
    asked = {method: {**request.scope, "method": method} for method in _METHODS}
    routes = [route for route in request.app.routes if not isinstance(route, Mount)]
    allowed = [m for m in _METHODS if any(route.matches(asked[m])[0] is Match.FULL for route in routes)]
    return allowed or ["GET", "HEAD"]  # a file of the documentation's
