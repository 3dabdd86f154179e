"""The routes of batches: create, list, retrieve, cancel."""

from collections.abc import Sequence

import msgspec
from fastapi import APIRouter, Request, Response

from batchmill.api.answer import json_answer, query_after, query_choices, query_id, query_limit, read_json
from batchmill.api.order import add_batch, input_file
from batchmill.api.replay import Made, Replays
from batchmill.api.reserve import write_on_reserve
from batchmill.blobs.space import Room
from batchmill.clock import Clock
from batchmill.spec import errors
from batchmill.spec.create import CreateOrder, parse_create
from batchmill.spec.fingerprint import create_fingerprint
from batchmill.spec.limits import Limits
from batchmill.spec.models import Catalogue
from batchmill.spec.objects import list_page
from batchmill.spec.states import Event, Status, next_status
from batchmill.store.batch import Batch, advance, find_batch, list_batches
from batchmill.store.database import Database, Transaction
from batchmill.store.forecast import with_forecasts
from batchmill.store.organisation import Allowance
from batchmill.store.receipt import with_costs
from batchmill.store.replay import Call, note_arrival

_STATUSES = tuple(status.value for status in Status)


def batch_routes(
    *, database: Database, room: Room, clock: Clock, limits: Limits, replays: Replays, catalogue: Catalogue
) -> APIRouter:
    """Return the four routes of contract a.6 to a.8."""
    router = APIRouter(prefix="/v1/batches", tags=["batches"])

    @router.post("")
    async def create(request: Request) -> Response:
        """Create a batch; its lines are checked afterwards, in `validating`. Repeated, it makes one batch."""
        call = replays.call(request, route="batches")
        value = await read_json(request, limit=limits.max_json_body)
        order, fingerprint = parse_create(value, limits=limits), create_fingerprint(value)
        answer = await replays.once(
            request,
            call=call,
            fingerprint=fingerprint,
            make=lambda tx: _add(tx, call, order, allowance=request.state.allowance, now=clock.now()),
        )
        return answer.response()

    @router.get("")
    async def list_(request: Request) -> Response:
        """List the organisation's batches, newest first; those in some statuses, or retries of one batch, or all."""
        mine = request.state.organisation_id
        statuses = query_choices(request, "status", _STATUSES)
        limit = query_limit(request, default=limits.batches_page, most=limits.max_batches_page)
        after = query_after(request, prefix="batch")
        parent_id = query_id(request, "parent_id", prefix="batch")

        def statements(tx: Transaction) -> Sequence[Batch]:
            batches = list_batches(
                tx,
                organisation_id=mine,
                after=after,
                limit=limit + 1,
                statuses=None if statuses is None else [Status(status) for status in statuses],
                parent_id=parent_id,
            )
            return shown(tx, batches, catalogue=catalogue, now=clock.now())

        found = await database.read(statements)
        page = [batch.object.wire(errors_shown=limits.errors_in_list) for batch in found[:limit]]
        return json_answer(list_page(page, has_more=len(found) > limit))

    @router.get("/{batch_id}")
    async def retrieve(request: Request, batch_id: str) -> Response:
        """Return a batch."""
        mine = request.state.organisation_id

        def statements(tx: Transaction) -> Sequence[Batch]:
            found = find_batch(tx, organisation_id=mine, batch_id=batch_id)
            return shown(tx, [] if found is None else [found], catalogue=catalogue, now=clock.now())

        found = await database.read(statements)
        if not found:
            raise errors.not_found("batch")
        await replays.arrived(request, batch_id)
        return json_answer(found[0].object.wire())

    @router.post("/{batch_id}/cancel")
    async def cancel(request: Request, batch_id: str) -> Response:
        """Cancel a batch; what is done stays done. Said again while `cancelling`, it changes nothing (choice 6)."""
        mine, caller = request.state.organisation_id, request.state.caller

        def statements(tx: Transaction) -> Sequence[Batch]:
            moved = _cancel(tx, mine, caller, batch_id, now=int(clock.now()))
            return shown(tx, [] if moved is None else [moved], catalogue=catalogue, now=clock.now())

        cancelled: Sequence[Batch] = ()
        while not cancelled:
            cancelled = await write_on_reserve(database, room, statements)
        return json_answer(cancelled[0].object.wire())

    return router


def shown(tx: Transaction, batches: Sequence[Batch], *, catalogue: Catalogue, now: float) -> Sequence[Batch]:
    """Return batches with what is shown of them beside their rows: how they will go on, and what they have cost."""
    return with_costs(tx, with_forecasts(tx, batches, now=now), catalogue=catalogue)


def _add(tx: Transaction, call: Call, order: CreateOrder, *, allowance: Allowance, now: float) -> Made:
    file = input_file(tx, organisation_id=call.organisation_id, file_id=order.input_file_id, now=now)
    added = add_batch(tx, order, file, key_id=call.api_key_id, allowance=allowance, now=now)
    note_arrival(tx, caller=call.caller, made_id=order.input_file_id)
    return Made(id=added.id, answer=msgspec.json.encode(added.object.wire()))


def _cancel(tx: Transaction, organisation_id: str, caller: str, batch_id: str, *, now: int) -> Batch | None:
    """Return the batch as it is after the cancel; None if someone moved it in between: look again."""
    found = find_batch(tx, organisation_id=organisation_id, batch_id=batch_id)
    if found is None:
        raise errors.not_found("batch")
    status = found.object.status
    if next_status(status, Event.CANCEL) is None:
        raise errors.not_cancellable(status)
    note_arrival(tx, caller=caller, made_id=batch_id)
    if status is Status.CANCELLING:
        return found
    if not advance(tx, batch_id=batch_id, status=status, event=Event.CANCEL, now=now):
        return None
    return find_batch(tx, organisation_id=organisation_id, batch_id=batch_id)
