"""Keeps the processes of `serve` alive, and ends them in order."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from batchmill.backends.builtin import EXIT_CANNOT
from batchmill.cli.exit import Exit, Stop

_START_SECONDS = 30.0  # a child has so long until its first heartbeat
_STARTS = 8  # in a row that came to no heartbeat, half a minute of them: the next one would end the same
_SHORT_LIFE = 5.0  # seconds: a child that died sooner is started again more and more slowly
_SLOWEST = 5.0
_KILL_SECONDS = 2.0


@dataclass(slots=True, kw_only=True)
class Child:
    """A process to keep alive.

    `order` gives the line for its standard input, from the descriptor of its heartbeat. It is killed when `start`
    seconds pass before its first heartbeat, or `silence` seconds between two. `grace` is how long it may take to end
    after SIGTERM. `hopeless` is the exit code after which a new start would end the same, and `verdict` that of the
    whole then.
    """

    name: str
    command: Sequence[str]
    order: Callable[[int], bytes]
    descriptors: Sequence[int]
    silence: float
    grace: float
    hopeless: int = EXIT_CANNOT
    verdict: Exit = Exit.FAULT
    start: float = _START_SECONDS
    process: Process | None = field(default=None, init=False)
    has_begun: bool = field(default=False, init=False)  # this process of it has beaten


class Supervisor:
    """Starts children, starts them again when they die or fall silent, and stops them in the order given.

    What a child has begun a new start goes on with, whatever ended it. One that cannot even begin ends the whole: at
    once if it says itself that it never will, else when it has ended by itself so often before its first heartbeat;
    whoever runs us then sees it, and the port is free. One that is killed is no such child: memory may come back.
    """

    def __init__(self, *, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep) -> None:
        """Set it up; `sleep` owns the time between two starts."""
        self._sleep = sleep
        self._stopping = False
        self._keeping: dict[str, asyncio.Task[None]] = {}
        self._children: list[Child] = []
        self._log = structlog.get_logger("supervisor")

    def keep(self, child: Child) -> None:
        """Start a child and keep it alive from now on."""
        self._children.append(child)
        self._keeping[child.name] = asyncio.create_task(self._keep(child))

    async def watch(self, stop: asyncio.Event) -> None:
        """Return when `stop` is set; raise what makes going on impossible."""
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([stopped, *self._keeping.values()], return_when=asyncio.FIRST_COMPLETED)
            for task in self._keeping.values():
                if task.done():
                    await task
        finally:
            stopped.cancel()

    async def stop(self, order: Sequence[str], at_once: asyncio.Event) -> None:
        """End the children one after the other; when `at_once` is set, all at once."""
        self._stopping = True
        hurry = asyncio.create_task(at_once.wait())
        for name in order:
            for child in self._children:
                if child.name == name:
                    await self._end(child, hurry)
        hurry.cancel()
        for task in self._keeping.values():
            task.cancel()
        await asyncio.gather(*self._keeping.values(), return_exceptions=True)  # cancelled; faults were raised by watch

    async def _end(self, child: Child, hurry: "asyncio.Task[bool]") -> None:
        process = child.process
        if process is None or process.returncode is not None:
            return
        waiting = asyncio.create_task(process.wait())
        if not hurry.done():
            _signal(process, signal.SIGTERM)
            await asyncio.wait([waiting, hurry], timeout=child.grace, return_when=asyncio.FIRST_COMPLETED)
        if process.returncode is None:
            why = "it was told to end at once" if hurry.done() else "it did not end in time"
            self._log.warning("killed", process=child.name, reason=why)
            _signal(process, signal.SIGKILL)
        await waiting

    async def _keep(self, child: Child) -> None:
        loop = asyncio.get_running_loop()
        wait, vain = 0.1, 0
        while not self._is_stopping():
            started = loop.time()
            code = await self._run(child)
            if self._is_stopping():
                return
            if code == child.hopeless:
                raise Stop(f"The {child.name} process cannot work here (see above).", child.verdict)
            vain = vain + 1 if code >= 0 and not child.has_begun else 0  # below 0: a signal
            if vain == _STARTS:
                sentence = f"The {child.name} process ended {vain} times before it could begin (see above)."
                raise Stop(sentence, child.verdict)
            wait = min(_SLOWEST, wait * 2) if loop.time() - started < _SHORT_LIFE else 0.1
            self._log.warning("process ended: starting it again", process=child.name, code=code, after=wait)
            await self._sleep(wait)

    def _is_stopping(self) -> bool:
        return self._stopping

    async def _run(self, child: Child) -> int:
        """Run a child once, from start to end; kill it when it falls silent."""
        reads, writes = os.pipe()
        child.has_begun = False
        try:
            process = await asyncio.create_subprocess_exec(
                *child.command,
                stdin=asyncio.subprocess.PIPE,
                pass_fds=[*child.descriptors, writes],
                process_group=0,
            )
            child.process = process
            if process.stdin is None:
                raise RuntimeError("a child without standard input")
            with suppress(ConnectionError):  # it died already: its exit code says more
                process.stdin.write(child.order(writes))
                await process.stdin.drain()
        finally:
            os.close(writes)
        beats = asyncio.create_task(self._kill_when_silent(child, process, reads))
        try:
            return await process.wait()
        finally:
            beats.cancel()

    async def _kill_when_silent(self, child: Child, process: Process, reads: int) -> None:
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reads, "rb", 0)
        )
        patience = max(child.silence, child.start)
        try:
            while await asyncio.wait_for(reader.read(64), timeout=patience):
                child.has_begun, patience = True, child.silence
        except TimeoutError:
            self._log.error("killed: it fell silent", process=child.name, seconds=patience)
            _signal(process, signal.SIGKILL)
        finally:
            transport.close()


def _signal(process: Process, number: int) -> None:
    """Send a signal to a child's whole process group."""
    with suppress(ProcessLookupError):  # it has ended in the meantime
        os.killpg(process.pid, number)


def python_module(name: str) -> list[str]:
    """Return the command that runs a module of ours with this interpreter."""
    return [sys.executable, "-m", name]
