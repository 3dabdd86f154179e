"""Rows that are written on a full disk, too: cancels and deletes, which the reserve is there for (invariant R11)."""

import asyncio
from typing import TypeVar

from batchmill.blobs.space import Room, is_full
from batchmill.store.database import Database, Statements

T = TypeVar("T")


async def write_on_reserve(database: Database, room: Room, statements: Statements[T]) -> T:
    """Write rows; where there is no space for them the reserve goes, and they are written then.

    The worker keeps the reserve once a second, which is too late for a client that cancels in between.
    """
    try:
        return await database.write(statements)
    except OSError as fault:
        if not is_full(fault):
            raise
    await asyncio.to_thread(room.give)
    return await database.write(statements)
