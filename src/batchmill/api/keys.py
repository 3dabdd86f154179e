"""The routes of an organisation's keys: list, create, revoke, rotate; for keys with the scope `admin` alone.

An admin key may give any scope in its own organisation, those too that it lacks: it could rotate a key that has them,
and so have them anyway. A key that is made is told once, to the call that made it: neither a log nor a replay record
holds it, and the answer to a repeated call is the key's facts without it.
"""

from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from batchmill.api.answer import json_answer, query_after, query_limit, read_json
from batchmill.api.replay import Made, Replays
from batchmill.api.reserve import write_on_reserve
from batchmill.blobs.space import Room
from batchmill.clock import Clock
from batchmill.spec import errors
from batchmill.spec.fingerprint import create_fingerprint
from batchmill.spec.keys import KeyOrder, parse_key_order, parse_overlap
from batchmill.spec.limits import Limits
from batchmill.spec.objects import list_page
from batchmill.spec.scopes import in_order
from batchmill.store.database import Database, Transaction
from batchmill.store.organisation import (
    Key,
    add_key,
    count_live_keys,
    find_key,
    hold_key,
    lock_organisation,
    page_keys,
    replace_key,
    revoke_key,
)
from batchmill.store.replay import Call, note_arrival


def key_routes(*, database: Database, room: Room, clock: Clock, limits: Limits, replays: Replays) -> APIRouter:
    """Return the four routes; the gate has judged the scope."""
    router = APIRouter(prefix="/v1/keys", tags=["keys"])

    @router.get("")
    async def list_(request: Request) -> Response:
        """List the organisation's keys, newest first, those that are good no more among them."""
        mine = request.state.organisation_id
        limit = query_limit(request, default=limits.keys_page, most=limits.max_keys_page)
        after = query_after(request, prefix="key")
        found = await database.read(lambda tx: page_keys(tx, organisation_id=mine, after=after, limit=limit + 1))
        return json_answer(list_page([_wire(key) for key in found[:limit]], has_more=len(found) > limit))

    @router.post("")
    async def create(request: Request) -> Response:
        """Make a key, and tell it this once."""
        call = replays.call(request, route="keys")
        value = await read_json(request, limit=limits.max_json_body, optional=True)
        order, fingerprint = parse_key_order(value), create_fingerprint(value)
        answer = await replays.once(
            request, call=call, fingerprint=fingerprint, make=lambda tx: _add(tx, call, order, limits, now=clock.now())
        )
        return answer.response()

    @router.post("/{key_id}/revoke")
    async def revoke(request: Request, key_id: str) -> Response:
        """Let a key be good for nothing from the next request on. Said again, it changes nothing."""
        mine, caller, now = request.state.organisation_id, request.state.caller, int(clock.now())
        revoked = await write_on_reserve(database, room, lambda tx: _revoke(tx, mine, caller, key_id, now=now))
        return json_answer(_wire(revoked))

    @router.post("/{key_id}/rotate")
    async def rotate(request: Request, key_id: str) -> Response:
        """Make a key like another, which stays good for a while: a day, unless the body says other."""
        call = replays.call(request, route="keys.rotate")
        value = await read_json(request, limit=limits.max_json_body, optional=True)
        overlap, fingerprint = parse_overlap(value), create_fingerprint([key_id, value])
        answer = await replays.once(
            request,
            call=call,
            fingerprint=fingerprint,
            make=lambda tx: _replace(tx, call, key_id, overlap=overlap, limits=limits, now=clock.now()),
        )
        return answer.response()

    return router


def _add(tx: Transaction, call: Call, order: KeyOrder, limits: Limits, *, now: float) -> Made:
    _hold_admin(tx, call, now=now)
    key_id, key = add_key(
        tx,
        organisation_id=call.organisation_id,
        now=now,
        name=order.name,
        scopes=order.scopes,
        expires_in=order.expires_in,
    )
    return _told(tx, call, key_id, key, limits=limits, now=now)


def _replace(tx: Transaction, call: Call, key_id: str, *, overlap: int, limits: Limits, now: float) -> Made:
    _hold_admin(tx, call, now=now)
    old = _found(tx, call.organisation_id, key_id)
    if old.replaced_at is not None:
        message = "This key was replaced already: rotate the one that replaced it, or make a new one."
        raise errors.invalid_request(message, code="invalid_key_state")
    if not old.is_live(int(now)):
        raise errors.invalid_request("This key is revoked or has expired: make a new one.", code="invalid_key_state")
    note_arrival(tx, caller=call.caller, made_id=key_id)
    return _told(tx, call, *replace_key(tx, old, now=now, overlap=overlap), limits=limits, now=now)


def _hold_admin(tx: Transaction, call: Call, *, now: float) -> None:
    """Make sure that who asks may still make keys: the body may have come slowly, and the key been revoked meanwhile.

    Raises:
        ApiError: it may not.
    """
    lock_organisation(tx, organisation_id=call.organisation_id)
    key_id = call.api_key_id or ""
    hold_key(tx, key_id=key_id)
    mine = find_key(tx, organisation_id=call.organisation_id, key_id=key_id)
    if mine is None or not mine.is_live(int(now)):
        raise errors.unauthenticated()


def _revoke(tx: Transaction, organisation_id: str, caller: str, key_id: str, *, now: int) -> Key:
    _found(tx, organisation_id, key_id)
    revoke_key(tx, key_id=key_id, now=now)
    note_arrival(tx, caller=caller, made_id=key_id)
    return _found(tx, organisation_id, key_id)


def _told(tx: Transaction, call: Call, key_id: str, key: str, *, limits: Limits, now: float) -> Made:
    """Return the answer for a key that was just made, if there are not too many now: it is undone then."""
    if count_live_keys(tx, organisation_id=call.organisation_id, now=int(now)) > limits.max_keys:
        message = f"Your organisation may have {limits.max_keys} keys that are good: revoke some."
        raise errors.invalid_request(message, code="too_many_keys")
    facts = _wire(_found(tx, call.organisation_id, key_id))
    return Made(id=key_id, answer=msgspec.json.encode({**facts, "key": key}), kept=msgspec.json.encode(facts))


def _found(tx: Transaction, organisation_id: str, key_id: str) -> Key:
    found = find_key(tx, organisation_id=organisation_id, key_id=key_id)
    if found is None:
        raise errors.not_found("key")
    return found


def _wire(key: Key) -> dict[str, Any]:
    return {
        "object": "api_key",
        "id": key.id,
        "name": key.name,
        "hint": key.hint,
        "scopes": in_order(key.scopes),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
    }
