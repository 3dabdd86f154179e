"""The route that tells how far a batch is: once, or as events for as long as it goes on."""

from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from batchmill.api.answer import json_answer, query_choice
from batchmill.api.events import Event, Streams, asks_for_events
from batchmill.clock import Clock
from batchmill.spec import errors
from batchmill.spec.models import Catalogue
from batchmill.spec.progress import ProgressObject
from batchmill.store.database import Database
from batchmill.store.progress import find_progress

_LOOK_SECONDS = 1.0


def progress_routes(*, database: Database, clock: Clock, streams: Streams, catalogue: Catalogue) -> APIRouter:
    """Return `GET /v1/batches/{id}/progress`."""
    router = APIRouter(prefix="/v1/batches", tags=["batches"])

    async def look(organisation_id: str, batch_id: str) -> ProgressObject:
        asked: dict[str, Any] = {"organisation_id": organisation_id, "batch_id": batch_id, "catalogue": catalogue}
        found = await database.read(lambda tx: find_progress(tx, now=clock.now(), **asked))
        if found is None:
            raise errors.not_found("batch")
        return found

    async def course(organisation_id: str, found: ProgressObject) -> AsyncGenerator[Event | None, None]:
        """Yield how far the batch is whenever that has changed, until it is final."""
        told = b""
        while True:
            said = msgspec.json.encode(found.wire())
            yield None if said == told else Event(name="progress", data=said)
            told = said
            if found.is_final:
                yield Event(name="end", data=msgspec.json.encode({"status": found.batch.status}))
                return
            await clock.sleep(_LOOK_SECONDS)
            found = await look(organisation_id, found.batch.id)

    @router.get("/{batch_id}/progress")
    async def progress(request: Request, batch_id: str) -> Response:
        """Tell how far a batch is, with `stream=true` or `Accept: text/event-stream` again and again."""
        mine = request.state.organisation_id
        stream = query_choice(request, "stream", ("true", "false"), default=str(asks_for_events(request)).lower())
        found = await look(mine, batch_id)
        return json_answer(found.wire()) if stream == "false" else streams.events(request, course(mine, found))

    return router
