"""What a Slice's row has to say before a line of it is sent: that it may have been, or that it goes alone."""

from collections.abc import Awaitable, Callable

from batchmill.engine.feed import Feed
from batchmill.engine.shortage import Shortage
from batchmill.engine.work import Work
from batchmill.ledger.ledger import Ledger


class Marks:
    """Writes it; `lose` is told of a Slice that is another's by now."""

    def __init__(
        self, *, feed: Feed, ledger: Ledger, shortage: Shortage, lose: Callable[[Work], Awaitable[None]]
    ) -> None:
        self._feed = feed
        self._ledger = ledger
        self._shortage = shortage
        self._lose = lose

    async def alone(self, work: Work, line: int | None) -> bool:
        """Say that this line goes alone, None that it came back; False where it may not go."""
        return await self._stands(work, self._ledger.mark_alone(work.claim.slice, line))

    async def sent(self, work: Work, count: int) -> bool:
        """Say which lines may have been sent once the next `count` go; False where they may not go."""
        sent = work.announce(count)
        stands = sent is None or await self._stands(work, self._ledger.mark_sent(work.claim.slice, sent))
        if stands and sent is not None:
            work.announced(sent)
        if stands:
            self._feed.offer(work)
        return stands

    async def _stands(self, work: Work, writing: Awaitable[bool]) -> bool:
        stands = await self._shortage.outlive(writing, otherwise=None)
        if stands is False:
            await self._lose(work)
        return stands is True
