"""The routes that steer a batch on its way: pause, resume, window, priority. Said again they change nothing."""

from collections.abc import Callable, Sequence
from functools import partial

from fastapi import APIRouter, Request, Response

from batchmill.api.answer import json_answer, read_json
from batchmill.api.batches import shown
from batchmill.api.reserve import write_on_reserve
from batchmill.blobs.space import Room
from batchmill.clock import Clock
from batchmill.spec import errors
from batchmill.spec.limits import Limits
from batchmill.spec.models import Catalogue
from batchmill.spec.steer import STEERED, parse_priority, parse_window
from batchmill.store.batch import Batch, find_batch
from batchmill.store.database import Database, Transaction
from batchmill.store.replay import note_arrival
from batchmill.store.steer import pause, resume, set_priority, set_window

Change = Callable[[Transaction, Batch, int], bool]  # at a Unix second; False: someone was faster


def steer_routes(*, database: Database, room: Room, clock: Clock, limits: Limits, catalogue: Catalogue) -> APIRouter:
    """Return the four routes; what they write is written on a full disk, too, as a cancel is."""
    router = APIRouter(prefix="/v1/batches", tags=["batches"])

    async def steered(request: Request, batch_id: str, done: str, change: Change) -> Response:
        mine, caller = request.state.organisation_id, request.state.caller

        def statements(tx: Transaction) -> Sequence[Batch]:
            changed = _steer(tx, mine, caller, batch_id, done=done, change=change, now=clock.now())
            return shown(tx, [] if changed is None else [changed], catalogue=catalogue, now=clock.now())

        found: Sequence[Batch] = ()
        while not found:  # someone moved it in between: look again
            found = await write_on_reserve(
                database,
                room,
                statements,
            )
        return json_answer(found[0].object.wire())

    @router.post("/{batch_id}/pause")
    async def pause_(request: Request, batch_id: str) -> Response:
        """Send no more lines of a batch; what is out comes back, and its window keeps running."""
        return await steered(request, batch_id, "paused", _pause)

    @router.post("/{batch_id}/resume")
    async def resume_(request: Request, batch_id: str) -> Response:
        """Let a paused batch go on."""
        return await steered(request, batch_id, "resumed", _resume)

    @router.post("/{batch_id}/window")
    async def window(request: Request, batch_id: str) -> Response:
        """Give a batch another window, longer or shorter; it counts from the batch's creation."""
        text, seconds = parse_window(await read_json(request, limit=limits.max_json_body), limits=limits)
        change = partial(_set_window, text=text, seconds=seconds)
        return await steered(request, batch_id, "given another window", change)

    @router.post("/{batch_id}/priority")
    async def priority(request: Request, batch_id: str) -> Response:
        """Let a batch come before, or behind, others of its organisation."""
        number = parse_priority(await read_json(request, limit=limits.max_json_body), limits=limits)
        return await steered(request, batch_id, "given a priority", partial(_set_priority, priority=number))

    return router


def _steer(
    tx: Transaction, organisation_id: str, caller: str, batch_id: str, *, done: str, change: Change, now: float
) -> Batch | None:
    """Return the batch as it is after the change; None if someone was faster."""
    found = find_batch(tx, organisation_id=organisation_id, batch_id=batch_id)
    if found is None:
        raise errors.not_found("batch")
    if found.object.status not in STEERED:
        raise errors.not_steerable(found.object.status, done)
    note_arrival(tx, caller=caller, made_id=batch_id)
    if not change(tx, found, int(now)):
        return None
    return find_batch(tx, organisation_id=organisation_id, batch_id=batch_id)


def _pause(tx: Transaction, found: Batch, now: int) -> bool:
    return found.object.paused_at is not None or pause(tx, found, now=now)


def _resume(tx: Transaction, found: Batch, now: int) -> bool:  # noqa: ARG001 - a Change
    return found.object.paused_at is None or resume(tx, found)


def _set_window(tx: Transaction, found: Batch, now: int, *, text: str, seconds: int) -> bool:
    expires_at = found.object.created_at + seconds
    if expires_at <= now:
        raise errors.invalid_value(
            "completion_window", "'completion_window' counts from the batch's creation, and would have ended by now."
        )
    if (text, expires_at) == (found.object.completion_window, found.object.expires_at):
        return True
    return set_window(tx, found, window=text, expires_at=expires_at)


def _set_priority(tx: Transaction, found: Batch, now: int, *, priority: int) -> bool:  # noqa: ARG001 - a Change
    return found.object.priority == priority or set_priority(tx, found, priority=priority)
