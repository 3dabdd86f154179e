"""The calls of a worker that are out: a task for each line that was sent."""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterator
from functools import partial

from batchmill.engine.work import Request, Work

Call = asyncio.Task[None]


class Calls:
    """Starts calls, knows which are out, and ends them early.

    A call that comes to its end says so itself, by `ended`: a callback of its task is a tenth of what a line costs.

    Args:
        ended: Told of each line whose call has ended, in whatever way.
    """

    def __init__(self, *, ended: Callable[[Request], None]) -> None:
        self._ended = ended
        self._out: dict[Request, Call] = {}

    def __len__(self) -> int:
        """Return how many are out."""
        return len(self._out)

    def __iter__(self) -> Iterator[Call]:
        """Yield each that is out."""
        return iter(list(self._out.values()))

    def of(self, work: Work) -> list[Request]:
        """Return the lines of one Slice that are out."""
        return [request for request in self._out if request.work is work]

    def start(self, request: Request, call: Coroutine[object, object, None]) -> None:
        """Let a call go out."""
        self._out[request] = asyncio.get_running_loop().create_task(call)

    def is_ending(self, request: Request) -> bool:
        """Say whether a call is being ended early."""
        return self._out[request].cancelling() > 0

    def ended(self, request: Request) -> None:
        """Note that a call has come to its end."""
        del self._out[request]
        self._ended(request)

    async def cancel(self, requests: Collection[Request] | None = None) -> None:
        """End the calls of these lines early, all calls without them, and wait until they have ended."""
        calls = {request: self._out[request] for request in (self._out if requests is None else requests)}
        for request, call in calls.items():
            call.add_done_callback(partial(self._pop, request))  # maybe it has not begun: then nobody else hears of it
            call.cancel()
        if calls:
            await asyncio.wait(calls.values())

    def _pop(self, request: Request, call: Call) -> None:
        if self._out.get(request) is not call:
            return  # it had come to its end
        if request.sent is not None:
            pace, sent_at = request.sent
            pace.withdrawn(sent_at)
        self.ended(request)
