"""Checks a whole store, reading only, also while it is worked on: rows against bytes, counts against lines.

Every part is read in a snapshot of its own: one held for as long as all bytes take would keep SQLite from ever
shortening its write-ahead log. What looks damaged is looked at again in a fresh one, since a File may have been deleted
or a batch may have ended meanwhile; it is damage only if the rows are still the same.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Collection, Iterator
from itertools import islice

from sqlalchemy.exc import DatabaseError

from batchmill.blobs.blobs import BlobMissing, Blobs
from batchmill.clock import Clock
from batchmill.ledger.batch_audit import check_batch
from batchmill.ledger.finding import Finding, Kind, Tally
from batchmill.store.audit import (
    BatchRows,
    BlobRow,
    count_rows,
    database_faults,
    find_blob,
    list_batch_ids,
    list_blobs,
    lost_owners,
    missing_blobs,
    read_batch,
    wrong_refs,
    wrong_sizes,
)
from batchmill.store.blob import known_keys
from batchmill.store.database import Database, Transaction

_AT_ONCE = 500  # rows a page
_LOOKS = 3  # at a batch that changes under the eye; damage stays, a race does not come three times
_YOUNG_SECONDS = 3600  # as long as the Sweeper leaves bytes without a row alone
_CHUNK = 1 << 20


class Audit:
    """One pass over everything; `tally` says how far it is. Memory holds one batch's rows and one Slice's Results.

    For a batch whose input is gone it holds some tens of bytes a line more: a digest of each custom_id.
    """

    def __init__(self, *, database: Database, blobs: Blobs, clock: Clock) -> None:
        self._database = database
        self._blobs = blobs
        self._clock = clock
        self.tally = Tally()

    async def findings(self) -> AsyncIterator[Finding]:
        """Yield what is found; nothing at all for a sound store at rest."""
        try:
            for part in (self._rows(), self._bytes(), self._orphans(), self._batches()):
                async for finding in part:
                    yield finding
        except DatabaseError as fault:
            yield Finding(kind=Kind.DATABASE, what="rows", detail=f"they cannot be read: {fault.orig}.")

    async def _rows(self) -> AsyncIterator[Finding]:
        for finding in await self._database.read(lambda tx: list(_compare_rows(tx))):
            yield finding
        self.tally.rows = await self._database.read(count_rows)

    async def _bytes(self) -> AsyncIterator[Finding]:
        after = ""
        while page := await self._database.read(lambda tx, after=after: list_blobs(tx, after=after, limit=_AT_ONCE)):  # type: ignore[misc]
            after = page[-1].key
            for row in page:
                if row.state != "ready":
                    age = max(0, int(self._clock.now()) - row.created_at)
                    detail = f"its bytes are {_ON_THE_WAY[row.state]}; the row is {age} s old."
                    yield Finding(kind=Kind.UNFINISHED, what=row.key, detail=detail)
                elif wrong := await asyncio.to_thread(self._check_bytes, row):
                    now = await self._database.read(lambda tx, key=row.key: find_blob(tx, key=key))  # type: ignore[misc]
                    if now is not None and (now.state, now.bytes, now.sha256) == (row.state, row.bytes, row.sha256):
                        yield Finding(kind=Kind.BYTES, what=row.key, detail=wrong)

    def _check_bytes(self, row: BlobRow) -> str | None:
        """Read all bytes of a blob; return what is wrong with them."""
        digest, size = hashlib.sha256(), 0
        self.tally.blobs += 1
        try:
            with self._blobs.open(row.key) as stream:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
                    size += len(chunk)
        except BlobMissing:
            return "its bytes are gone."
        except OSError as fault:
            return f"its bytes cannot be read: {fault.strerror}."
        self.tally.bytes += size
        if size != row.bytes:
            return f"it has {size} bytes, and its row says {row.bytes}."
        if row.sha256 is not None and digest.hexdigest() != row.sha256:
            return f"its SHA-256 is {digest.hexdigest()}, and its row says {row.sha256}."
        return None

    async def _orphans(self) -> AsyncIterator[Finding]:
        """Compare the keys that have bytes with the rows, and after that their age: bytes come before their row."""
        unknown: set[str] = set()
        every = self._blobs.keys(before=float("inf"))
        while keys := await asyncio.to_thread(lambda: list(islice(every, _AT_ONCE))):
            unknown |= await self._unknown(keys)
        if not unknown:
            return
        before = self._clock.now() - _YOUNG_SECONDS
        old = await asyncio.to_thread(lambda: unknown.intersection(self._blobs.keys(before=before)))
        still = await asyncio.to_thread(lambda: unknown.intersection(self._blobs.keys(before=float("inf"))))
        age = {True: "older than an hour", False: "younger than an hour"}
        # Swept meanwhile, or written: a group commit's row comes after its bytes. Neither is told.
        for key in sorted(await self._unknown(still)):
            if not await asyncio.to_thread(self._has_bytes, key):
                detail = f"its bytes are half written, without a row, and {age[key in old]}."
                yield Finding(kind=Kind.UNFINISHED, what=key, detail=detail)
            else:
                kind = Kind.ORPHAN if key in old else Kind.YOUNG
                yield Finding(kind=kind, what=key, detail=f"its bytes have no row and are {age[key in old]}.")

    async def _unknown(self, keys: Collection[str]) -> set[str]:
        return set(keys) - await self._database.read(lambda tx: known_keys(tx, keys=keys))

    def _has_bytes(self, key: str) -> bool:
        try:
            self._blobs.open(key).close()
        except BlobMissing:
            return False
        return True

    async def _batches(self) -> AsyncIterator[Finding]:
        after = ""
        while ids := await self._database.read(lambda tx, after=after: list_batch_ids(tx, after=after, limit=_AT_ONCE)):  # type: ignore[misc]
            after = ids[-1]
            for batch_id in ids:
                for finding in await self._check_batch(batch_id):
                    yield finding

    async def _check_batch(self, batch_id: str) -> list[Finding]:
        found: list[Finding] = []
        lines = self.tally.lines
        rows = await self._read_batch(batch_id)
        for _ in range(_LOOKS):
            if rows is None:
                return []
            self.tally.lines = lines
            found = await asyncio.to_thread(lambda rows=rows: list(check_batch(rows, self._blobs, self.tally)))  # type: ignore[misc]
            if not any(finding.is_damage for finding in found):
                break
            before, rows = rows, await self._read_batch(batch_id)
            if rows == before:
                break
        return found

    async def _read_batch(self, batch_id: str) -> BatchRows | None:
        return await self._database.read(lambda tx: read_batch(tx, batch_id=batch_id))


_ON_THE_WAY = {"writing": "being written", "doomed": "going"}


def _compare_rows(tx: Transaction) -> Iterator[Finding]:
    """Yield what rows say wrongly of each other, in one snapshot."""
    for detail in database_faults(tx):
        yield Finding(kind=Kind.DATABASE, what="rows", detail=f"{detail}.")
    for who, key in missing_blobs(tx):
        yield Finding(kind=Kind.BYTES, what=who, detail=f"it refers to {key}, which has no ready row.")
    for key, refs, count in wrong_refs(tx):
        yield Finding(kind=Kind.REFS, what=key, detail=f"its refs are {refs}, and {count} rows point at it.")
    for file_id, said, size in wrong_sizes(tx):
        yield Finding(kind=Kind.BYTES, what=file_id, detail=f"the File says {said} bytes, its bytes' row {size}.")
    for batch_id, owner in lost_owners(tx):
        yield Finding(kind=Kind.LEASE, what=batch_id, detail=f"{owner} holds of it, and is no worker any more.")
