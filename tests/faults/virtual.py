"""An event loop in virtual time, and processes on it that can be killed or stopped between any two of their steps.

Every callback of the loop belongs to the process in whose context it was made. A dead process's callbacks never run
again; those of a stopped one wait, and run when it goes on: SIGKILL and SIGSTOP, at every await there is.
"""

import asyncio
import heapq
import selectors
from collections.abc import Callable, Mapping
from contextvars import Context, ContextVar, copy_context
from typing import Any

_EPOCH = 1_800_000_000.0  # Unix seconds when a loop begins
_BOOT = 1_000.0  # and its boot clock
_MOST_TURNS = 20_000  # of the loop at one moment


class Killed(BaseException):
    """The process dies inside a blocking call: what it had not done by now is never done."""


class StandStill(Exception):  # noqa: N818 - it states what is so
    """Time does not go on."""


class Process:
    """Who a callback belongs to."""

    def __init__(self, *, name: str, loop: "VirtualLoop") -> None:
        self.name = name
        self.frozen = False
        self.dead = False
        self._loop = loop
        self._held: list[asyncio.Handle] = []

    def kill(self) -> None:
        """Run nothing of it any more."""
        self.dead = self.frozen = True

    def stop(self) -> None:
        """Run nothing of it until it goes on."""
        self.frozen = True

    def go_on(self) -> None:
        """Run all that has become due meanwhile, unless it is dead."""
        if not self.dead:
            self.revive()

    def revive(self) -> None:
        """Let even a dead one go on, so that its tasks can be cancelled when all is over."""
        self.frozen = self.dead = False
        held, self._held = self._held, []
        for handle in held:
            self._loop.put_ready(handle)

    def hold(self, handle: asyncio.Handle) -> None:
        """Keep a callback that became due while it stands still."""
        self._held.append(handle)


_PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)


def context_of(process: Process) -> Context:
    """Return a context whose callbacks, and all that they make, belong to this process."""
    context = copy_context()
    context.run(_PROCESS.set, process)
    return context


class _Owned(asyncio.Handle):
    """A callback of a process."""

    owner: Process

    def _run(self) -> None:
        if self.owner.frozen:
            self.owner.hold(self)
        else:
            super()._run()  # type: ignore[misc] - typeshed leaves it out


class _OwnedTimer(asyncio.TimerHandle):
    """A timer of a process."""

    owner: Process

    def _run(self) -> None:
        if self.owner.frozen:
            self.owner.hold(self)
        else:
            super()._run()  # type: ignore[misc] - typeshed leaves it out


class _Skip(selectors.SelectSelector):
    """Never waits: it moves the time on to the next timer."""

    def __init__(self, move: Callable[[float], None]) -> None:
        super().__init__()
        self._move = move
        self._turns = 0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise StandStill("nothing will ever happen again")
        self._turns = self._turns + 1 if timeout == 0 else 0
        if self._turns > _MOST_TURNS:
            self._turns = 0
            raise StandStill("somebody is busy for ever")
        self._move(timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time jumps to the next timer; what is handed to a thread is done at once, in this one.

    `thread_delay` says how long an answer of a thread takes to arrive (seconds): meanwhile its caller can die.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        super().__init__(_Skip(self.skip))
        self.thread_delay: Callable[[], float] = lambda: 0.0
        self.faults: list[Mapping[str, Any]] = []
        self.set_exception_handler(lambda _loop, context: self.faults.append(context))

    def time(self) -> float:
        """Return the virtual seconds since the loop was made."""
        return self._seconds

    def skip(self, seconds: float) -> None:
        """Move the time on."""
        self._seconds += seconds

    def put_ready(self, handle: asyncio.Handle) -> None:
        """Let a callback run in the next turn."""
        self._ready.append(handle)  # type: ignore[attr-defined] - BaseEventLoop's queue

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> asyncio.Handle:  # noqa: ANN401 - as asyncio
        """See `asyncio`; the callback belongs to the process of its context."""
        context = copy_context() if context is None else context
        owner = context.get(_PROCESS)
        if owner is None:
            return super().call_soon(callback, *args, context=context)
        handle = _Owned(callback, args, self, context)
        handle.owner = owner
        self.put_ready(handle)
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[..., Any],
        *args: Any,  # noqa: ANN401 - as asyncio
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """See `asyncio`."""
        return self.call_at(self._seconds + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[..., Any],
        *args: Any,  # noqa: ANN401 - as asyncio
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """See `asyncio`; the timer belongs to the process of its context."""
        context = copy_context() if context is None else context
        owner = context.get(_PROCESS)
        if owner is None:
            return super().call_at(when, callback, *args, context=context)
        timer = _OwnedTimer(when, callback, args, self, context)
        timer.owner = owner
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined] - BaseEventLoop's queue
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override] # noqa: ANN401
        """Do it now. A default thread's answer arrives later; a caller who died in it gets none."""
        future = self.create_future()
        try:
            result = func(*args)
        except Killed:
            return future
        except BaseException as fault:  # noqa: BLE001 - the caller's
            future.set_exception(fault)
            return future
        delay = self.thread_delay() if executor is None else 0.0
        if delay:
            self.call_later(delay, lambda: future.done() or future.set_result(result))
        else:
            future.set_result(result)
        return future


class VirtualClock:
    """The clocks of the world: `boot` never steps, `now` is stepped by hand (`skew`)."""

    def __init__(self) -> None:
        self.loop: VirtualLoop | None = None
        self.skew = 0.0

    def attach(self, loop: VirtualLoop) -> None:
        """Begin a new world's time."""
        self.loop, self.skew = loop, 0.0

    def now(self) -> float:
        """Unix time in seconds."""
        return _EPOCH + self._seconds() + self.skew

    def boot(self) -> float:
        """Seconds that never step."""
        return _BOOT + self._seconds()

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        await asyncio.sleep(seconds)

    def _seconds(self) -> float:
        return 0.0 if self.loop is None else self.loop.time()
