"""The whole API as one ASGI application."""

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from batchmill.api.answer import error_answer
from batchmill.api.batches import batch_routes
from batchmill.api.files import file_routes
from batchmill.api.gate import App, Gate
from batchmill.api.health import health_routes
from batchmill.api.models import model_routes
from batchmill.blobs.blobs import Blobs
from batchmill.clock import Clock
from batchmill.spec import errors
from batchmill.spec.errors import ApiError
from batchmill.spec.limits import Limits
from batchmill.store.database import Database


def create_app(*, database: Database, blobs: Blobs, clock: Clock, limits: Limits, version: str) -> App:
    """Build the API: the nine routes of the contract, models, and health."""
    app = FastAPI(title="Batchmill", version=version, redoc_url=None, redirect_slashes=False)
    app.include_router(file_routes(database=database, blobs=blobs, clock=clock, limits=limits))
    app.include_router(batch_routes(database=database, clock=clock, limits=limits))
    app.include_router(model_routes(database=database))
    app.include_router(health_routes(database=database, blobs=blobs, clock=clock))
    app.add_exception_handler(HTTPException, _routing_answer)
    app.add_exception_handler(ApiError, _api_answer)
    app.add_exception_handler(Exception, _fault_answer)
    return Gate(app, database=database)


async def _api_answer(_request: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    return error_answer(error)


async def _fault_answer(_request: Request, _fault: Exception) -> Response:
    """Answer a fault of ours; the framework raises it again, and the gate logs it."""
    return error_answer(errors.server_error())


async def _routing_answer(_request: Request, fault: Exception) -> Response:
    """Turn the framework's own 404 and 405 into our envelope."""
    if isinstance(fault, HTTPException) and fault.status_code == 405:  # noqa: PLR2004 - method not allowed
        return error_answer(errors.method_not_allowed((fault.headers or {}).get("Allow", "").split(", ")))
    if isinstance(fault, HTTPException) and fault.status_code == 404:  # noqa: PLR2004 - not found
        return error_answer(errors.unknown_route())
    raise fault
