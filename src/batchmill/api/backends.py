"""The route of backends: how each is, as all workers together know it."""

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request, Response

from batchmill.api.answer import json_answer
from batchmill.store.database import Database, Transaction
from batchmill.store.lane import list_windows
from batchmill.store.model import list_backends
from batchmill.store.organisation import Allowance
from batchmill.store.roster import list_roster

_NOT_ASKED = "not asked yet"


def backend_routes(*, database: Database) -> APIRouter:
    """Return the one route."""
    router = APIRouter(prefix="/v1/backends", tags=["backends"])

    @router.get("")
    async def list_(request: Request) -> Response:
        """List the backends by name, each with those of its models that the organisation may use."""
        allowance = request.state.allowance
        found = await database.read(lambda tx: list(_backends(tx, allowance)))
        return json_answer({"object": "list", "data": found})

    return router


def _backends(tx: Transaction, allowance: Allowance) -> Iterator[dict[str, Any]]:
    said = {entry.name: entry for entry in list_roster(tx)}
    windows = {standing.name: standing for standing in list_windows(tx)}
    known = {backend.name: backend for backend in list_backends(tx)}
    for name in sorted(said.keys() | known.keys()):
        entry, backend, window = said.get(name), known.get(name), windows.get(name)
        told = backend.models if backend is not None else ()
        named = entry.models if entry is not None else ()
        yield {
            "object": "backend",
            "id": name,
            "well": backend is not None and backend.well,
            "reason": _NOT_ASKED if backend is None else backend.reason,
            "since": backend.since if backend is not None else said[name].since,
            "window": None if window is None else window.total or None,
            "in_flight": 0 if window is None else window.in_flight,
            "workers": 0 if window is None else window.workers,
            "draining": entry is not None and entry.draining,
            "models": sorted(model for model in {*named, *told} if allowance.permits(model)),
        }
