"""The quote: what a batch over a File would be, before it is created: checked, estimated, priced, foretold, tried."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import msgspec
from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect

from batchmill.api.answer import json_answer, read_json
from batchmill.api.maker import FileMaker
from batchmill.api.order import add_batch, input_file
from batchmill.api.replay import Made, client_gone
from batchmill.api.slots import Slots
from batchmill.blobs.blobs import BlobMissing, Blobs, Span
from batchmill.schedule.forecast import outlook
from batchmill.spec import errors
from batchmill.spec.create import CreateOrder, parse_create, parse_trial
from batchmill.spec.fingerprint import create_fingerprint
from batchmill.spec.models import Catalogue
from batchmill.spec.objects import LineError
from batchmill.spec.quote import Estimate, Quote
from batchmill.store.database import Transaction
from batchmill.store.file import File
from batchmill.store.model import list_models
from batchmill.store.outlook import Queue, read_queue
from batchmill.validation.budget import beyond_budgets
from batchmill.validation.child import run_beside
from batchmill.validation.validation import Validation, validate

T = TypeVar("T")

_BLOCK = 1 << 20  # bytes
_ASK_AGAIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Input:
    """What is quoted, and the models that its organisation may use."""

    file: File
    known: Collection[str]


def quote_routes(*, maker: FileMaker, catalogue: Catalogue) -> APIRouter:
    """Return the route of quotes."""
    limits, clock, database = maker.limits, maker.clock, maker.database
    slots = Slots(each=limits.max_quotes_per_key, most=limits.max_quotes)
    router = APIRouter(prefix="/v1/batches", tags=["batches"])

    async def find(request: Request, order: CreateOrder) -> _Input:
        mine, permits, now = request.state.organisation_id, request.state.allowance.permits, clock.now()
        return await database.read(lambda tx: _find(tx, order, organisation_id=mine, permits=permits, now=now))

    async def check(request: Request, order: CreateOrder, given: _Input, trial: int) -> Validation:
        """Check the input as a batch would, and write nothing."""
        call = partial(
            validate,
            blobs=maker.blobs,
            input_key=given.file.blob_key,
            plan_key=None,
            endpoint=order.endpoint,
            limits=limits,
            known_models=given.known,
            catalogue=catalogue,
            first=trial,
        )
        return await _unless_gone(request, run_beside(call, size=given.file.object.bytes))

    async def quoted(order: CreateOrder, given: _Input, found: Validation) -> Quote:
        now = clock.now()
        expires_at = int(now) + order.window_seconds
        wrong, queue = await database.read(partial(_judge, found=found, file=given.file, catalogue=catalogue))
        return Quote(
            order=order,
            bytes=given.file.object.bytes,
            requests=found.lines,
            errors=wrong,
            estimates=_estimates(found),
            queue_position=queue.batches,
            outlook=outlook(
                queue.running,
                last=queue.last,
                ahead=queue.tokens,
                tokens=None if wrong else found.tokens,
                now=now,
                expires_at=expires_at,
            ),
            expires_at=expires_at,
        )

    @router.post("/quote")
    async def quote(request: Request) -> Response:
        """Say what a batch would be, and make nothing; or, with `trial`, let its first lines really run, once."""
        call = maker.replays.call(request, route="quote")
        value = await read_json(request, limit=limits.max_json_body)
        order, trial = parse_create(value, limits=limits), parse_trial(value, limits=limits)
        fingerprint = create_fingerprint(value)
        # A trial that runs is told of, whatever has changed since; its own tokens are enqueued, for one.
        if trial and (earlier := await maker.replays.earlier(call, fingerprint=fingerprint)):
            return earlier.response()
        with slots.one(call.caller):
            given = await find(request, order)
            await maker.replays.arrived(request, order.input_file_id)
            try:
                found = await check(request, order, given, trial)
                told = await quoted(order, given, found)
                if told.errors or not trial:
                    return json_answer(told.wire(catalogue))

                def then(tx: Transaction, file: File) -> Made:
                    tried = replace(order, metadata={"trial_of": order.input_file_id})
                    allowance = request.state.allowance
                    added = add_batch(tx, tried, file, key_id=call.api_key_id, allowance=allowance, now=clock.now())
                    answer = msgspec.json.encode(told.wire(catalogue, trial=added.object.wire()))
                    return Made(id=added.id, answer=answer)

                answer = await maker.make(
                    request,
                    call=call,
                    filename=f"{order.input_file_id}_trial{limits.extension}",
                    lines=lambda: _lines(maker.blobs, given.file.blob_key, found.first),
                    fingerprint=lambda _: fingerprint,
                    then=then,
                )
            except BlobMissing:  # deleted since: a 400, and no fault of ours
                await find(request, order)
                raise
        return answer.response()

    return router


def _find(
    tx: Transaction, order: CreateOrder, *, organisation_id: str, permits: Callable[[str], bool], now: float
) -> _Input:
    file = input_file(tx, organisation_id=organisation_id, file_id=order.input_file_id, now=now)
    models = list_models(tx)
    if not models:  # as a new batch waits: nothing could be told from a misspelt name
        message = "No model is known yet: no backend has told what it serves."
        raise errors.unavailable(message, _ASK_AGAIN_SECONDS)
    return _Input(file=file, known={name for name, _ in models if permits(name)})


def _judge(
    tx: Transaction, *, found: Validation, file: File, catalogue: Catalogue
) -> tuple[Sequence[LineError], Queue]:
    """Return what is wrong with a batch over a File, its lines or its size, and what it would find."""
    mine = file.organisation_id
    beyond = beyond_budgets(tx, found, organisation_id=mine, catalogue=catalogue, adds=False)
    return found.errors or beyond, read_queue(tx, models=found.models)


def _estimates(found: Validation) -> dict[str, Estimate]:
    return {
        part.model: Estimate(
            requests=part.lines,
            prompt_tokens=part.prompt_tokens,
            completion_tokens=part.completion_tokens,
            unbounded=part.unbounded,
        )
        for part in found.parts
    }


def _lines(blobs: Blobs, key: str, spans: Sequence[Span]) -> Iterator[bytes]:
    """Yield these spans of a blob, each with a line end, in pieces that fit in little memory."""
    with blobs.open(key) as stream:
        for offset, length in spans:
            stream.seek(offset)
            left = length
            while left:
                block = stream.read(min(left, _BLOCK))
                if not block:
                    raise BlobMissing(f"{key} ends {left} bytes too early")
                left -= len(block)
                yield block
            yield b"\n"


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Wait for work that only reads; a client that goes away ends it.

    Raises:
        ClientDisconnect: nobody waits for the answer any more.
    """
    gone, working = asyncio.ensure_future(client_gone(request)), asyncio.ensure_future(work)
    try:
        await asyncio.wait({gone, working}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        gone.cancel()
        working.cancel()  # a child process is killed by that
        await asyncio.wait({working})
