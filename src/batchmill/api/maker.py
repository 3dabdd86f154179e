"""Makes a File's bytes durable and adds its rows: whole, in one last transaction, or not at all."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request

from batchmill.api.fault import SPACE_SECONDS
from batchmill.api.order import new_file, publish_file
from batchmill.api.replay import Answer, Made, Replays
from batchmill.blobs.blobs import Blobs, Written
from batchmill.blobs.space import Room
from batchmill.clock import Clock
from batchmill.spec import errors
from batchmill.spec.ids import mint_id
from batchmill.spec.limits import Limits
from batchmill.store.blob import doom_blob, insert_writing
from batchmill.store.database import Database, Transaction
from batchmill.store.file import File
from batchmill.store.replay import Call, delete_running

T = TypeVar("T")


async def in_thread(call: Callable[[], T]) -> T:
    """Run a blocking call to its end, even if the caller is cancelled: nobody may give up a file beneath a write."""
    running = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


async def ask_for_room(room: Room) -> None:
    """Raise the 507 where there is no room for more bytes; before one of them is read."""
    if await asyncio.to_thread(room.short) is not None:
        raise errors.insufficient_storage(SPACE_SECONDS)


def begin(tx: Transaction, replays: Replays, call: Call, key: str, *, now: int) -> None:
    """Hold a call's Idempotency-Key, and announce the bytes that it is about to write."""
    replays.begin(tx, call)
    insert_writing(tx, key=key, organisation_id=call.organisation_id, now=now)


def give_up(tx: Transaction, call: Call, key: str) -> None:
    """Let go of both: nothing was made."""
    delete_running(tx, call=call)
    doom_blob(tx, key=key)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileMaker:
    """Makes Files of lines that are at hand: requests that came in an order, or the first ones of another File."""

    database: Database
    blobs: Blobs
    room: Room
    clock: Clock
    limits: Limits
    replays: Replays
    retention: int | None  # seconds that such a File lasts; None: for ever

    async def make(
        self,
        request: Request,
        *,
        call: Call,
        filename: str,
        lines: Callable[[], Iterable[bytes]],
        fingerprint: Callable[[Written], str],
        then: Callable[[Transaction, File], Made],
    ) -> Answer:
        """Write a File, and in the transaction that adds it do what `then` does; or answer as an earlier call was.

        Args:
            request: What asks for it, read to its end.
            call: The same, as it may come again.
            filename: The File's.
            lines: Yields the bytes, blocking, in pieces of some size.
            fingerprint: Tells what makes another call the same as this one.
            then: Makes what goes with the File, and tells of it.

        Raises:
            ApiError: 507, there is no room; 400, a quota does not allow it; 409, as in `Replays`.
        """
        await ask_for_room(self.room)
        key = mint_id("upload", self.clock.now())
        await self.database.write(lambda tx: begin(tx, self.replays, call, key, now=int(self.clock.now())))
        try:
            written = await self.replays.hold(call, in_thread(lambda: self._write(key, lines())))
            added = self._file(call, key, filename, written)

            def statements(tx: Transaction) -> Made:
                publish_file(tx, added, written, limits=self.limits, allowance=request.state.allowance)
                return then(tx, added)

            answer = await self.replays.once(request, call=call, fingerprint=fingerprint(written), make=statements)
        except BaseException:
            await self.database.write(lambda tx: give_up(tx, call, key))
            raise
        if answer.replayed:  # these bytes are the first File's bytes again
            await self.database.write(lambda tx: doom_blob(tx, key=key))
        return answer

    def _write(self, key: str, lines: Iterable[bytes]) -> Written:
        writer = self.blobs.writer(key)
        try:
            for piece in lines:
                writer.write(piece)
            return writer.finish()
        finally:
            writer.discard()

    def _file(self, call: Call, key: str, filename: str, written: Written) -> File:
        if written.bytes > self.limits.max_input_bytes:
            raise errors.too_big("The file of these requests", self.limits.max_input_bytes)
        return new_file(
            organisation_id=call.organisation_id,
            key=key,
            filename=filename,
            size=written.bytes,
            now=self.clock.now(),
            lasts=self.retention,
        )
