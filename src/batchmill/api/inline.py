"""An order that brings its requests: they become a File, and a batch over it is created, both or neither."""

from collections.abc import Iterable, Iterator

import msgspec
from fastapi import APIRouter, Request, Response

from batchmill.api.answer import read_body, unreadable
from batchmill.api.maker import FileMaker, ask_for_room, in_thread
from batchmill.api.order import add_batch
from batchmill.api.replay import Made
from batchmill.api.slots import Slots
from batchmill.spec import errors
from batchmill.spec.create import parse_order
from batchmill.spec.fingerprint import inline_fingerprint
from batchmill.spec.inline import Inline, InlineReader
from batchmill.spec.limits import Limits
from batchmill.spec.rules import UNREADABLE
from batchmill.store.database import Transaction
from batchmill.store.file import File

_PIECE = 1 << 20  # bytes handed to the writer at once, about


def inline_routes(*, maker: FileMaker) -> APIRouter:
    """Return the route of orders with requests in them."""
    limits, clock, replays = maker.limits, maker.clock, maker.replays
    slots = Slots(each=limits.max_inline_per_key, most=limits.max_inline)
    reader = InlineReader(limits=limits)
    router = APIRouter(prefix="/v1/batches", tags=["batches"])

    @router.post("/inline")
    async def inline(request: Request) -> Response:
        """Create a batch of the requests in the body; a File of them appears all the same. Repeated, it makes one."""
        call = replays.call(request, route="inline")
        _refuse_long(int(request.headers.get("content-length", "0")), limits)  # the server took it for a number
        with slots.one(call.caller):
            await ask_for_room(maker.room)
            body = await read_body(request, limit=limits.max_inline_bytes)
            brought = await in_thread(lambda: _read(reader, body))
            # The File has no id yet, and what is wrong with the order is said before a byte is written.
            order = parse_order(brought.members, input_file_id="", limits=limits)

            def then(tx: Transaction, file: File) -> Made:
                allowance = request.state.allowance
                added = add_batch(tx, order, file, key_id=call.api_key_id, allowance=allowance, now=clock.now())
                return Made(id=added.id, answer=msgspec.json.encode(added.object.wire()))

            answer = await maker.make(
                request,
                call=call,
                filename=f"inline{limits.extension}",
                lines=lambda: _pieces(brought.lines(order.endpoint)),
                fingerprint=lambda written: inline_fingerprint(brought.members, sha256=written.sha256),
                then=then,
            )
        return answer.response()

    return router


def _refuse_long(size: int, limits: Limits) -> None:
    if size > limits.max_inline_bytes:
        raise errors.too_big("The request body", limits.max_inline_bytes)


def _read(reader: InlineReader, body: bytearray) -> Inline:
    try:
        return reader.read(body)
    except UNREADABLE as fault:
        raise unreadable(fault) from fault


def _pieces(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield lines, many at once."""
    waiting = bytearray()
    for line in lines:
        waiting += line
        if len(waiting) >= _PIECE:
            yield bytes(waiting)
            waiting.clear()
    yield bytes(waiting)
