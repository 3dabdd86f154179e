"""Reads claimed Slices' lines into memory, as many as the bound holds."""

import asyncio

from batchmill.blobs.blobs import BlobMissing, Blobs
from batchmill.engine.feed import Feed
from batchmill.engine.shortage import Shortage
from batchmill.engine.work import Work
from batchmill.ledger.ledger import Ledger

_LOADED_BYTES = 64 << 20  # bodies in memory, over all claimed Slices; one Slice of each model is always loaded


class Loader:
    """Loads what is in hand."""

    def __init__(self, *, feed: Feed, blobs: Blobs, ledger: Ledger, shortage: Shortage) -> None:
        self._feed = feed
        self._blobs = blobs
        self._ledger = ledger
        self._shortage = shortage

    async def load(self) -> list[Work]:
        """Load what there is room for, and return it; a Slice whose bytes are gone is given back.

        While the bytes are away, what is in hand waits for them.
        """
        loaded: list[Work] = []
        size = sum(work.size for work in self._feed)
        for work in self._feed.by_priority():
            if work.is_wanting and (size < _LOADED_BYTES or not self._feed.is_loaded(work.model)):
                try:
                    if not await self._shortage.outlive(self._read(work), otherwise=False):
                        break  # the bytes are away: the next step asks for them again
                except BlobMissing as missing:
                    aside = self._ledger.put_aside(work.claim.slice, missing)
                    if await self._shortage.outlive(aside, otherwise=False):
                        self._feed.remove(work)
                else:
                    loaded.append(work)
                    size += work.size
                    self._feed.offer(work)
        return loaded

    async def _read(self, work: Work) -> bool:
        key = work.claim.batch.input_key
        if key is None:
            raise ValueError(f"{work.batch_id} is in progress and has no input")
        spans = work.spans()
        texts = await asyncio.to_thread(self._blobs.read_spans, key, list(spans.values()))
        work.load(dict(zip(spans, texts, strict=True)))
        return True
