"""The route that retries what failed of a batch: the failed lines once more, as a File and a batch of their own."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import msgspec
from fastapi import APIRouter, Request, Response

from batchmill.api.answer import read_json
from batchmill.api.maker import ask_for_room, begin, give_up, in_thread
from batchmill.api.order import add_batch, new_file, publish_file
from batchmill.api.replay import Made, Replays
from batchmill.api.slots import Slots
from batchmill.blobs.blobs import BlobMissing, Blobs, Written
from batchmill.blobs.space import Room
from batchmill.clock import Clock
from batchmill.ledger.retry import copy_failed
from batchmill.spec import errors
from batchmill.spec.create import CreateOrder, parse_create
from batchmill.spec.errors import ApiError
from batchmill.spec.family import FAILED, Wanted, left_to_retry, taken_text
from batchmill.spec.fingerprint import create_fingerprint
from batchmill.spec.groups import is_group
from batchmill.spec.ids import mint_id
from batchmill.spec.limits import Limits
from batchmill.spec.states import FINAL
from batchmill.store.batch import Batch, find_batch
from batchmill.store.blob import doom_blob
from batchmill.store.database import Database, Transaction
from batchmill.store.file import File, find_file
from batchmill.store.order import as_child, list_children, lock_parent
from batchmill.store.organisation import Allowance
from batchmill.store.replay import Call, note_arrival

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """A final batch, which of its failed lines are to be retried, and the Files that are read for it."""

    parent: Batch
    order: CreateOrder
    wanted: Wanted
    input: File
    error: File


def retry_routes(
    *,
    database: Database,
    blobs: Blobs,
    room: Room,
    clock: Clock,
    limits: Limits,
    replays: Replays,
    retention: int | None,
    scans: Slots,
) -> APIRouter:
    """Return the route; the new File lasts `retention` seconds, None for ever.

    `scans` are the slots of calls that read a whole input.
    """
    router = APIRouter(prefix="/v1/batches", tags=["batches"])

    @router.post("/{batch_id}/retry")
    async def retry(request: Request, batch_id: str) -> Response:
        """Retry the failed lines of a final batch, all that no retry has yet or those of one error group."""
        call, key = replays.call(request, route="retry"), mint_id("upload", clock.now())
        value = await read_json(request, limit=limits.max_json_body, optional=True)
        look = _Look(
            call=call,
            batch_id=batch_id,
            value=value,
            group=_group(value),
            limits=limits,
            allowance=request.state.allowance,
        )

        def announce(tx: Transaction) -> None:
            if find_batch(tx, organisation_id=call.organisation_id, batch_id=batch_id) is None:
                raise errors.not_found("batch")
            begin(tx, replays, call, key, now=int(clock.now()))

        with scans.one(call.caller):
            await ask_for_room(room)
            await database.write(announce)
            try:
                # What refuses it may be the child that this very call made before its answer was lost: ask that first.
                copying = _copied(database, blobs, look, key=key, now=int(clock.now()))
                copied = await replays.hold(call, copying)
                answer = await replays.once(
                    request,
                    call=call,
                    fingerprint=create_fingerprint([batch_id, value]),
                    make=lambda tx: _make(tx, look, copied, key=key, now=clock.now(), lasts=retention),
                )
            except BaseException:
                await database.write(lambda tx: give_up(tx, call, key))
                raise
        if answer.replayed:
            await database.write(lambda tx: doom_blob(tx, key=key))
        return answer.response()

    return router


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What is asked for: of which batch which failed lines, and how the child is to be."""

    call: Call
    batch_id: str
    value: object
    group: str | None
    limits: Limits
    allowance: Allowance

    def source(self, tx: Transaction, *, now: int) -> _Source:
        """Return what there is to be copied; ApiError if it cannot be."""
        mine = self.call.organisation_id
        parent = find_batch(tx, organisation_id=mine, batch_id=self.batch_id)
        if parent is None:
            raise errors.not_found("batch")
        facts = parent.object
        if facts.status not in FINAL:
            message = f"A batch that is {facts.status} cannot be retried: wait until it is final."
            raise errors.invalid_request(message, code="invalid_batch_state")
        order = _order(self.value, parent, self.limits)
        wanted = _left(tx, parent, self.group)
        if not facts.counts.failed:
            raise _nothing("The batch has no failed line.")
        source = find_file(tx, organisation_id=mine, file_id=facts.input_file_id, now=now)
        if source is None:
            raise _gone("input", facts.input_file_id)
        error = find_file(tx, organisation_id=mine, file_id=str(facts.error_file_id), now=now)
        if error is None:
            raise _gone("error", str(facts.error_file_id))
        return _Source(parent=parent, order=order, wanted=wanted, input=source, error=error)


def _make(
    tx: Transaction, look: _Look, copied: tuple[_Source, Written] | ApiError, *, key: str, now: float, lasts: int | None
) -> Made:
    """Add the File and the child, unless there is a reason against it."""
    if isinstance(copied, ApiError):
        raise copied
    source, written = copied
    _refuse_taken(tx, source)
    file = new_file(
        organisation_id=look.call.organisation_id,
        key=key,
        filename=f"{look.batch_id}_retry{look.limits.extension}",
        size=written.bytes,
        now=now,
        lasts=lasts,
    )
    publish_file(tx, file, written, limits=look.limits, allowance=look.allowance)
    child = add_batch(
        tx,
        source.order,
        file,
        key_id=look.call.api_key_id,
        allowance=look.allowance,
        now=now,
        parent_id=look.batch_id,
        retry_group=taken_text(source.wanted),
    )
    note_arrival(tx, caller=look.call.caller, made_id=look.batch_id)
    return Made(id=child.id, answer=msgspec.json.encode(child.object.wire()))


async def _copied(
    database: Database, blobs: Blobs, look: _Look, *, key: str, now: int
) -> tuple[_Source, Written] | ApiError:
    """Copy the lines, with nothing of the rows held meanwhile; return why not where that cannot be."""
    while True:
        try:
            source = await database.read(lambda tx: look.source(tx, now=now))
        except ApiError as refused:
            return refused
        try:
            written = await in_thread(
                partial(
                    copy_failed,
                    blobs=blobs,
                    batch_id=source.parent.id,
                    input_key=source.input.blob_key,
                    error_key=source.error.blob_key,
                    wanted=source.wanted,
                    key=key,
                )
            )
        except BlobMissing:  # a File was deleted since: then that is what the rows say now
            if await database.read(lambda tx: look.source(tx, now=now)) == source:
                raise
            continue
        if written is None:
            return _nothing("No failed line of this error group is left." if look.group else "No failed line is left.")
        return source, written


def _refuse_taken(tx: Transaction, source: _Source) -> None:
    """Raise the 400 if another retry has taken any of these lines since they were copied."""
    lock_parent(tx, batch_id=source.parent.id)
    children = list_children(tx, batch_id=source.parent.id)
    if left_to_retry([as_child(each) for each in children], source.wanted) != source.wanted:
        raise _taken(children[-1:])


def _left(tx: Transaction, parent: Batch, group: str | None) -> Wanted:
    found = list_children(tx, batch_id=parent.id)
    children = [as_child(each) for each in found]
    wanted = left_to_retry(children, FAILED if group is None else replace(FAILED, groups=frozenset({group})))
    if not wanted.failed:
        raise _taken([each for each, child in zip(found, children, strict=True) if not child.is_void])
    return wanted


def _taken(children: Sequence[Batch]) -> ApiError:
    return _nothing(f"These lines are retried already, by {', '.join(child.id for child in children)}.")


def _nothing(message: str) -> ApiError:
    return errors.invalid_request(message, code="nothing_to_retry")


def _gone(what: str, file_id: str) -> ApiError:
    return errors.invalid_value("batch_id", f"The {what} file of the batch, {file_id}, is deleted or has expired.")


def _group(value: object) -> str | None:
    group = value.get("error_group") if isinstance(value, dict) else None
    if group is not None and not (isinstance(group, str) and is_group(group)):
        raise errors.invalid_value("error_group", "'error_group' must be the id of an error group.")
    return group


def _order(value: object, parent: Batch, limits: Limits) -> CreateOrder:
    """Return the child's order: the parent's, save what is given."""
    if not isinstance(value, dict):
        raise errors.invalid_type(None, "a JSON object")
    facts = parent.object
    given = {name: value[name] for name in ("completion_window", "metadata") if name in value}
    parents = {
        "input_file_id": facts.input_file_id,
        "endpoint": facts.endpoint,
        "completion_window": facts.completion_window,
        "metadata": facts.metadata,
    }
    order = parse_create({**parents, **given}, limits=limits)
    return replace(order, output_expires_after=parent.output_expires_after)
