"""The calls of a worker that are out: a task for each line that was sent."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from functools import partial

from batchmill.engine.work import Request, Work

Call = asyncio.Task[None]
Ended = Callable[[Request, Call], None]


class Calls:
    """Starts calls, knows which are out, and ends them early.

    Args:
        ended: Told of each that has ended, in whatever way.
    """

    def __init__(self, *, ended: Ended) -> None:
        self._ended = ended
        self._out: dict[Call, Request] = {}

    def __len__(self) -> int:
        """Return how many are out."""
        return len(self._out)

    def __iter__(self) -> Iterator[Call]:
        """Yield each that is out."""
        return iter(list(self._out))

    def of(self, work: Work) -> list[Call]:
        """Return those of one Slice."""
        return [call for call, request in self._out.items() if request.work is work]

    def start(self, request: Request, call: Coroutine[object, object, None]) -> None:
        """Let a call go out."""
        task = asyncio.create_task(call)
        self._out[task] = request
        task.add_done_callback(partial(self._pop, request))

    async def cancel(self, calls: list[Call]) -> None:
        """End calls early, and wait until they have ended."""
        for call in calls:
            call.cancel()
        if calls:
            await asyncio.wait(calls)

    def _pop(self, request: Request, call: Call) -> None:
        del self._out[call]
        self._ended(request, call)
