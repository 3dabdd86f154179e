"""A batch followed to its end: by events, by asking for its progress, or by looking at the Batch alone."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from batchmill.client.events import events_of
from batchmill.client.failure import Failed, Refused
from batchmill.client.http import SILENCE_SECONDS, Client, Json
from batchmill.client.patience import Patience
from batchmill.client.progress import Observed, is_final

EVERY = 2.0  # seconds between two looks
NO_PROGRESS = "This server does not tell of progress: its Batch is looked at every {every:g} s."


async def has_batch(client: Client, batch_id: str) -> Json:
    """Return a Batch, asked for after another route answered that something is not there.

    Raises:
        Refused: it is the batch that is not there.
    """
    return await client.get(f"/batches/{batch_id}")


async def follow(
    client: Client,
    batch_id: str,
    *,
    say: Callable[[str], None],
    every: float = EVERY,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> AsyncIterator[Json]:
    """Yield `batch.progress` objects until one is final, which is yielded, too.

    A server that is away is waited for, once it has been there.

    Raises:
        Refused: there is no such batch, or the key is not good for it.
        Unreachable: the server has never been there, or is away for too long.
    """
    patience = Patience(client, say=say, sleep=sleep)
    while True:
        try:
            async for progress in _events(client, batch_id):
                patience.there()
                yield progress
                if is_final(progress):
                    return
        except Failed as fault:
            if isinstance(fault, Refused) and fault.is_missing:
                await patience.through(lambda: has_batch(client, batch_id))
                break
            await patience.wait(fault)
        else:  # it ended before the batch did, as where a server restarts
            await sleep(every)
    say(NO_PROGRESS.format(every=every))
    async for progress in _looks(client, batch_id, patience=patience, every=every, sleep=sleep):
        yield progress


async def _events(client: Client, batch_id: str) -> AsyncIterator[Json]:
    """Yield what one stream tells; where progress is no stream, the one object that it is."""
    path, headers = f"/batches/{batch_id}/progress", {"Accept": "text/event-stream"}
    async with client.open("GET", path, headers=headers, silence=SILENCE_SECONDS) as answer:
        if not answer.headers.get("Content-Type", "").startswith("text/event-stream"):
            yield _progress(b"".join([chunk async for chunk in answer.chunks()]))
            return
        async for event in events_of(answer.chunks()):
            if event.name == "end":
                return
            if event.name == "progress":
                yield _progress(event.data)


async def _looks(
    client: Client,
    batch_id: str,
    *,
    patience: Patience,
    every: float,
    sleep: Callable[[float], Awaitable[object]],
) -> AsyncIterator[Json]:
    observed = Observed()
    while True:
        batch = await patience.through(lambda: has_batch(client, batch_id))
        yield observed.progress(batch, time.time())
        if is_final(batch):
            return
        await sleep(every)


def _progress(data: bytes) -> Json:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as fault:
        raise Failed("The server's progress is no JSON.") from fault
    if not isinstance(found, dict):
        raise Failed("The server's progress is no JSON object.")
    return found
