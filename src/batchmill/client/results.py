"""The result lines of a batch, while it runs or afterwards; from the result files where there is no route for it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from batchmill.client.download import content_of
from batchmill.client.events import lines_of
from batchmill.client.failure import Failed, Refused
from batchmill.client.follow import EVERY, has_batch
from batchmill.client.http import Client, Json
from batchmill.client.patience import Patience
from batchmill.client.progress import is_final
from batchmill.spec.groups import group_of

_PAGE = 1000  # lines of a page
_WAIT = 30  # seconds that the server waits for a line
_ANSWER_SECONDS = 120.0
_GONE = "results_gone"
_NO_ROUTE = "This server gives results at the end only: they come from the result files."


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Which lines are wanted.

    `status` is succeeded, failed, or None for all; `error_group` is the id of one cause; `merged` has the children that
    retried lines in their parents' place; `follow` goes on until the batch is final.
    """

    status: str | None = None
    error_group: str | None = None
    merged: bool = False
    follow: bool = False

    def query(self) -> dict[str, str | int]:
        """Return it as the route takes it."""
        asked: dict[str, str | int] = {"limit": _PAGE}
        if self.status is not None:
            asked["status"] = self.status
        if self.error_group is not None:
            asked["error_group"] = self.error_group
        return asked | ({"merged": "true"} if self.merged else {}) | ({"wait": _WAIT} if self.follow else {})


async def results(
    client: Client,
    batch_id: str,
    chosen: Chosen,
    *,
    say: Callable[[str], None],
    every: float = EVERY,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> AsyncIterator[bytes]:
    """Yield result lines, each with its line end, byte for byte as in the result files, and none twice.

    Raises:
        Refused: there is no such batch, no such group, or the files are deleted.
        Failed: the server has no such route, and the files have no answer yet.
    """
    patience = Patience(client, say=say, sleep=sleep)
    try:
        async for line in _pages(client, batch_id, chosen, patience=patience, every=every, sleep=sleep):
            yield line
    except Refused as refused:
        if not refused.is_missing or refused.code == _GONE:
            raise
        batch = await patience.through(lambda: has_batch(client, batch_id))
    else:
        return
    if chosen.merged:
        raise Failed("This server cannot merge batches: it has no route for results.")
    say(_NO_ROUTE)
    while not is_final(batch):
        if not chosen.follow:
            raise Failed(f"The batch is {batch.get('status')} yet: --follow waits for its end.")
        await sleep(every)
        batch = await patience.through(lambda: has_batch(client, batch_id))
    async for line in _from_files(client, batch, chosen, patience=patience):
        yield line


async def _pages(
    client: Client,
    batch_id: str,
    chosen: Chosen,
    *,
    patience: Patience,
    every: float,
    sleep: Callable[[float], Awaitable[object]],
) -> AsyncIterator[bytes]:
    after, given = None, set[int]()  # what came of the page behind `after`, whose answer may have broken off
    while True:
        query = chosen.query() | ({} if after is None else {"after": after})
        try:
            async with client.open(
                "GET", f"/batches/{batch_id}/results", query=query, silence=_ANSWER_SECONDS
            ) as answer:
                headers = answer.headers
                async for line in lines_of(answer.chunks()):
                    if (mark := hash(line)) not in given:  # merged, a line may leave the page when it is retried
                        given.add(mark)
                        yield line + b"\n"
        except Failed as fault:
            await patience.wait(fault)
            continue
        patience.there()
        came, given, after = len(given), set(), headers.get("x-next-cursor", after)
        if headers.get("x-complete") == "true" or after is None:
            return
        if headers.get("x-has-more") != "true":
            if not chosen.follow:
                return
            if not came:
                await sleep(min(1.0, every))  # it has waited itself; a server that does not is not stormed


async def _from_files(client: Client, batch: Json, chosen: Chosen, *, patience: Patience) -> AsyncIterator[bytes]:
    wanted = chosen.status if chosen.error_group is None else "failed"
    for status, member in (("succeeded", "output_file_id"), ("failed", "error_file_id")):
        file_id = batch.get(member)
        if file_id is None or wanted not in {None, status}:
            continue
        async for line in lines_of(content_of(client, file_id, patience=patience)):
            if chosen.error_group is None or _group(line) == chosen.error_group:
                yield line + b"\n"


def _group(line: bytes) -> str | None:
    try:
        return group_of(line)[1].id
    except ValueError:
        return None
