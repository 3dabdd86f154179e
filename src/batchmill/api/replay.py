"""Makes a repeated POST harmless: the answer that was lost is given again, and nothing is made twice.

A client repeats a call with an Idempotency-Key, or, as the official one does by itself, with a count of its retries
(design, "Retries of our own clients"; contract a.9 and choice 9). Only the digests of both keys are kept.
"""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog
from fastapi import Request, Response
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import ClientDisconnect

from batchmill.clock import Clock
from batchmill.spec import errors
from batchmill.spec.ids import mint_id
from batchmill.spec.limits import Limits
from batchmill.store.database import Database, DatabaseAway, Transaction
from batchmill.store.replay import (
    Call,
    find_key,
    insert_answer,
    insert_running,
    lock_calls,
    may_be_lost,
    note_arrival,
    renew_running,
    take_answer,
)

T = TypeVar("T")

_KEY = "Idempotency-Key"
_VISIBLE = re.compile(r"[!-~]+")
_COUNT = re.compile(r"[0-9]{1,4}")
_LEASE_SECONDS = 60.0  # renewed by the bytes that arrive: an upload that stands still for so long loses its key
_RENEW_SECONDS = _LEASE_SECONDS / 3
_RETRY_SECONDS = 5.0  # an upload takes a while


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What a call made, and how its answer tells of it.

    `kept` is what a repeated call gets, where the answer holds a secret: rows are no place for that.
    """

    id: str
    answer: bytes
    kept: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The body of the answer to a call; `replayed` if it was given to an earlier one, and nothing was made."""

    body: bytes
    replayed: bool

    def response(self) -> Response:
        """Return it as a JSON response."""
        headers = {"x-idempotent-replay": "true"} if self.replayed else None
        return Response(self.body, media_type="application/json", headers=headers)


class Replays:
    """The answers that are kept for clients that ask again."""

    def __init__(self, *, database: Database, clock: Clock, limits: Limits) -> None:
        self._database = database
        self._clock = clock
        self._limits = limits
        self._log = structlog.get_logger("replay")

    def call(self, request: Request, *, route: str) -> Call:
        """Return what a POST says of itself in its headers.

        Raises:
            ApiError: its Idempotency-Key is empty, too long, there twice, or not visible ASCII.
        """
        count = request.headers.get("x-stainless-retry-count", "")
        return Call(
            id=mint_id("replay", self._clock.now()),
            organisation_id=request.state.organisation_id,
            caller=request.state.caller,
            api_key_id=request.state.key_id,
            route=route,
            key_digest=self._key_digest(request.headers.getlist(_KEY)),
            retries=int(count) if _COUNT.fullmatch(count) else 0,
        )

    def begin(self, tx: Transaction, call: Call) -> None:
        """Hold a call's Idempotency-Key while its body is on its way; without a key this does nothing.

        Raises:
            ApiError: another call with the key is running.
        """
        if call.key_digest is None:
            return
        lock_calls(tx, call=call)
        now = int(self._clock.now())
        found = find_key(tx, call=call, now=now, lease=_LEASE_SECONDS)
        if found is None:
            expires_at = now + self._limits.idempotency_kept
            insert_running(tx, call=call, expires_at=expires_at, lease=_LEASE_SECONDS)
        elif found.answer is None:
            raise _running()

    async def renewing(self, call: Call, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Pass a body on, and hold the call's key for as long as it moves."""
        renewed = self._clock.boot()
        async for chunk in stream:
            if call.key_digest is not None and self._clock.boot() - renewed >= _RENEW_SECONDS:
                await self._database.write(lambda tx: renew_running(tx, call=call, lease=_LEASE_SECONDS))
                renewed = self._clock.boot()
            yield chunk

    async def hold(self, call: Call, work: Awaitable[T]) -> T:
        """Wait for work of our own between `begin` and `once`, and hold the call's key meanwhile."""
        renewing = asyncio.ensure_future(self._renew(call))
        try:
            return await work
        finally:
            renewing.cancel()

    async def _renew(self, call: Call) -> None:
        while call.key_digest is not None:
            await self._clock.sleep(_RENEW_SECONDS)
            try:
                await self._database.write(lambda tx: renew_running(tx, call=call, lease=_LEASE_SECONDS))
            except (DatabaseAway, SQLAlchemyError, OSError):  # the work's own writes say it, too, if it lasts
                self._log.warning("a key could not be held for longer", exc_info=True)

    async def once(
        self, request: Request, *, call: Call, fingerprint: str, make: Callable[[Transaction], Made]
    ) -> Answer:
        """Return the answer of the earlier call that this one repeats; else make what is asked for and keep its answer.

        Both are one transaction: a crash can neither lose what was made nor double it. The request's body has been
        read. A client that has timed out sends its call again: if this one is still waiting for its transaction then,
        it makes nothing, for nobody can hear of it any more, and the next try would make the same. With a key it goes
        on: the next try gets this one's answer, and would begin anew for ever if the work takes longer than it waits.

        Raises:
            ApiError: the Idempotency-Key belongs to a call that asked for something else, or that is still running.
            ClientDisconnect: nobody waits for the answer any more, and the call has no key.
        """
        gone = asyncio.ensure_future(client_gone(request))
        await self._clock.sleep(0)  # a client that has gone already is known from here on

        def statements(tx: Transaction) -> Answer:
            lock_calls(tx, call=call, fingerprint=fingerprint)
            if gone.done() and call.key_digest is None:
                raise ClientDisconnect
            kept = self._kept(tx, call, fingerprint)
            if kept is not None:
                return kept
            made = make(tx)
            request.state.made = made.id  # what is told of this request names it
            return self._keep(tx, call, fingerprint, made)

        try:
            return await self._database.write(statements)
        finally:
            gone.cancel()

    async def earlier(self, call: Call, *, fingerprint: str) -> Answer | None:
        """Return the answer of the earlier call that this one repeats, if any: before work that `once` ends.

        Raises:
            ApiError: as `once`.
        """
        if call.key_digest is None and not call.retries:
            return None

        def statements(tx: Transaction) -> Answer | None:
            lock_calls(tx, call=call, fingerprint=fingerprint)
            return self._kept(tx, call, fingerprint)

        return await self._database.write(statements)

    async def arrived(self, request: Request, made_id: str) -> None:
        """Note that a client knows this File or batch; what is only read must not fail where nothing can be written."""
        caller = request.state.caller
        if not await self._database.read(lambda tx: may_be_lost(tx, caller=caller, made_id=made_id)):
            return
        try:
            await self._database.write(lambda tx: note_arrival(tx, caller=caller, made_id=made_id))
        except (DatabaseAway, SQLAlchemyError, OSError):
            self._log.warning("an answer that arrived could not be noted", made=made_id, exc_info=True)

    def _kept(self, tx: Transaction, call: Call, fingerprint: str) -> Answer | None:
        now = int(self._clock.now())
        if call.key_digest is None:
            expires_at = now + self._limits.retry_replayed
            answer = take_answer(tx, call=call, fingerprint=fingerprint, now=now, expires_at=expires_at)
            return None if answer is None else Answer(body=answer, replayed=True)
        found = find_key(tx, call=call, now=now, lease=_LEASE_SECONDS)
        if found is None or found.id == call.id:
            return None
        if found.answer is None:
            raise _running()
        if found.fingerprint != fingerprint:
            raise errors.conflict(f"This {_KEY} was used for another request. Use a new one.")
        return Answer(body=found.answer, replayed=True)

    def _keep(self, tx: Transaction, call: Call, fingerprint: str, made: Made) -> Answer:
        lasts = self._limits.retry_replayed if call.key_digest is None else self._limits.idempotency_kept
        insert_answer(
            tx,
            call=call,
            fingerprint=fingerprint,
            made_id=made.id,
            answer=made.answer if made.kept is None else made.kept,
            expires_at=int(self._clock.now()) + lasts,
        )
        return Answer(body=made.answer, replayed=False)

    def _key_digest(self, keys: list[str]) -> str | None:
        if not keys:
            return None
        most = self._limits.max_idempotency_key
        if len(keys) > 1 or len(keys[0]) > most or not _VISIBLE.fullmatch(keys[0]):
            raise errors.invalid_value(_KEY, f"'{_KEY}' must be one value of 1 to {most} visible ASCII characters.")
        return hashlib.sha256(keys[0].encode()).hexdigest()


async def client_gone(request: Request) -> None:
    """Return when the client of a request whose body has been read is not there any more."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _running() -> errors.ApiError:
    return errors.conflict(f"The first request with this {_KEY} is still running.", retry_after=_RETRY_SECONDS)
