"""What a Runner outlives: a full disk, for which sending stops, and bytes that are away; neither is a fault."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

import structlog

from batchmill.blobs.blobs import BlobsAway
from batchmill.blobs.space import Room, is_full
from batchmill.telemetry import Metrics

T = TypeVar("T")


class Shortage:
    """Why there is too little space to send, if there is (design, "Full disk")."""

    def __init__(self, *, room: Room, metrics: Metrics) -> None:
        self.reason: str | None = None
        self._room = room
        self._metrics = metrics
        self._log = structlog.get_logger("runner")

    async def look(self) -> None:
        """Look at the disk. While it has too little space, what is out ends, and its Results wait in memory."""
        reason = await asyncio.to_thread(self._room.short)
        if reason is not None and self.reason is None:
            self._metrics.disk_pauses.inc()
            self._log.warning("sending stops", reason=reason)
        elif reason is None and self.reason is not None:
            self._log.info("sending goes on: there is space again")
        self.reason = reason
        self._metrics.disk_short.set(reason is not None)

    async def outlive(self, doing: Awaitable[T], *, otherwise: T) -> T:
        """Return what a write or a read returns; `otherwise` where there is no space for it, or the bytes are away.

        Nothing was recorded then.
        """
        try:
            return await doing
        except BlobsAway as fault:
            self._log.warning("the bytes are away", reason=str(fault))
            return otherwise
        except OSError as fault:
            if not is_full(fault):
                raise
            self._log.warning("a write has no space", reason=str(fault))
            await asyncio.to_thread(self._room.give)
            await self.look()
            return otherwise
