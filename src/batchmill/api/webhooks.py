"""The routes of webhooks: where an organisation wants to hear of its batches' ends, and the log of what was sent."""

import hashlib

import msgspec
from fastapi import APIRouter, Request, Response

from batchmill.api.answer import json_answer, query_after, query_limit, read_json
from batchmill.api.replay import Made, Replays
from batchmill.api.reserve import write_on_reserve
from batchmill.blobs.space import Room
from batchmill.clock import Clock
from batchmill.spec import errors
from batchmill.spec.ids import mint_id
from batchmill.spec.limits import Limits
from batchmill.spec.objects import list_page
from batchmill.spec.states import FINAL
from batchmill.spec.webhooks import WebhookOrder, mint_secret, parse_webhook
from batchmill.store.database import Database, Transaction
from batchmill.store.organisation import lock_organisation
from batchmill.store.replay import Call, note_arrival
from batchmill.store.webhook import (
    Delivery,
    Webhook,
    count_webhooks,
    delete_webhook,
    find_webhook,
    insert_deliveries,
    insert_webhook,
    list_deliveries,
    list_webhooks,
    lock_status,
    replay_delivery,
)


def webhook_routes(
    *, database: Database, room: Room, clock: Clock, limits: Limits, replays: Replays, public_only: bool
) -> APIRouter:
    """Return the routes of webhooks themselves; with `public_only` none may lead inward."""
    router = APIRouter(tags=["webhooks"])

    async def add(request: Request, batch_id: str | None) -> Response:
        call = replays.call(request, route="webhooks" if batch_id is None else f"webhooks/{batch_id}")
        value = await read_json(request, limit=limits.max_json_body)
        order = parse_webhook(value, public_only=public_only)
        fingerprint = hashlib.sha256(msgspec.json.encode([batch_id, order.url, order.events])).hexdigest()

        def make(tx: Transaction) -> Made:
            return _add(tx, call, order, batch_id, most=limits.max_webhooks, now=clock.now())

        return (await replays.once(request, call=call, fingerprint=fingerprint, make=make)).response()

    @router.post("/v1/webhooks")
    async def create(request: Request) -> Response:
        """Add a webhook for all batches of the organisation; the answer alone shows its secret."""
        return await add(request, None)

    @router.post("/v1/batches/{batch_id}/webhooks")
    async def create_for_batch(request: Request, batch_id: str) -> Response:
        """Add a webhook for one batch; of one that is final already it hears at once."""
        return await add(request, batch_id)

    @router.get("/v1/webhooks")
    async def list_(request: Request) -> Response:
        """List the organisation's webhooks, newest first."""
        mine, limit = request.state.organisation_id, _limit(request, limits)
        after = query_after(request, prefix="wh")
        found = await database.read(lambda tx: list_webhooks(tx, organisation_id=mine, after=after, limit=limit + 1))
        return json_answer(list_page([each.wire() for each in found[:limit]], has_more=len(found) > limit))

    @router.delete("/v1/webhooks/{webhook_id}")
    async def delete(request: Request, webhook_id: str) -> Response:
        """Remove a webhook and its log."""
        mine, caller = request.state.organisation_id, request.state.caller

        def statements(tx: Transaction) -> bool:
            note_arrival(tx, caller=caller, made_id=webhook_id)  # an answer that tells of it is never given again
            return delete_webhook(tx, organisation_id=mine, webhook_id=webhook_id)

        if not await write_on_reserve(database, room, statements):
            raise errors.not_found("webhook")
        return json_answer({"id": webhook_id, "object": "webhook", "deleted": True})

    return router


def delivery_routes(*, database: Database, clock: Clock, limits: Limits) -> APIRouter:
    """Return the routes of what was sent."""
    router = APIRouter(tags=["webhooks"])

    @router.get("/v1/webhooks/{webhook_id}/deliveries")
    async def deliveries(request: Request, webhook_id: str) -> Response:
        """List what was sent to a webhook, or is to be, newest first; kept for thirty days."""
        mine, limit = request.state.organisation_id, _limit(request, limits)
        after = query_after(request, prefix="whd")

        def statements(tx: Transaction) -> list[Delivery]:
            _find(tx, mine, webhook_id)
            return list(list_deliveries(tx, webhook_id=webhook_id, after=after, limit=limit + 1))

        found = await database.read(statements)
        return json_answer(list_page([each.wire() for each in found[:limit]], has_more=len(found) > limit))

    @router.post("/v1/webhooks/{webhook_id}/deliveries/{delivery_id}/replay")
    async def replay(request: Request, webhook_id: str, delivery_id: str) -> Response:
        """Send an event once more, under the id that it had."""
        mine, now = request.state.organisation_id, int(clock.now())

        def statements(tx: Transaction) -> Delivery | None:
            _find(tx, mine, webhook_id)
            return replay_delivery(tx, webhook_id=webhook_id, delivery_id=delivery_id, now=now)

        again = await database.write(statements)
        if again is None:
            raise errors.not_found("delivery")
        return json_answer(again.wire())

    return router


def _limit(request: Request, limits: Limits) -> int:
    return query_limit(request, default=limits.batches_page, most=limits.max_batches_page)


def _find(tx: Transaction, organisation_id: str, webhook_id: str) -> Webhook:
    found = find_webhook(tx, organisation_id=organisation_id, webhook_id=webhook_id)
    if found is None:
        raise errors.not_found("webhook")
    return found


def _add(tx: Transaction, call: Call, order: WebhookOrder, batch_id: str | None, *, most: int, now: float) -> Made:
    mine = call.organisation_id
    status = None if batch_id is None else lock_status(tx, organisation_id=mine, batch_id=batch_id)
    if batch_id is not None and status is None:
        raise errors.not_found("batch")
    if batch_id is None:
        lock_organisation(tx, organisation_id=mine)
    count = count_webhooks(tx, organisation_id=mine, batch_id=batch_id)
    if count >= most:
        raise errors.invalid_request(f"There are {count} webhooks already; at most {most} are allowed.")
    added = Webhook(
        id=mint_id("wh", now),
        organisation_id=mine,
        batch_id=batch_id,
        url=order.url,
        events=order.events,
        secret=mint_secret(),
        created_at=int(now),
    )
    insert_webhook(tx, added)
    if batch_id is not None and status in FINAL and f"batch.{status}" in order.events:
        insert_deliveries(tx, webhooks=[added], batch_id=batch_id, status=status, now=int(now))
    return Made(id=added.id, answer=msgspec.json.encode(added.wire(with_secret=True)))
