"""Work for actors that writes down what becomes of it: a stand-in for a worker, importable where actors run."""

import asyncio
import os
from asyncio import AbstractEventLoop
from dataclasses import dataclass
from pathlib import Path

import uvloop

from batchmill.schedule.scale import Left


@dataclass(frozen=True, kw_only=True)
class NotedWork:
    """Writes `on` to a file named after its process while it works, and `drained` when it has drained.

    While there is a file `fault`, it takes that away and fails; while there is a file `deaf`, it never drains.
    """

    folder: Path

    def loop(self) -> AbstractEventLoop:
        """See `Work`."""
        return uvloop.new_event_loop()

    async def run(self, stopping: asyncio.Event) -> None:
        """See `Work`."""
        note = self.folder / f"pid-{os.getpid()}"
        note.write_text("on")
        if (self.folder / "fault").exists():
            (self.folder / "fault").unlink()
            raise RuntimeError("as the test wants it")
        await stopping.wait()
        while (self.folder / "deaf").exists():  # noqa: ASYNC110 - a file rings no bell
            await asyncio.sleep(0.05)
        note.write_text("drained")


@dataclass(frozen=True, kw_only=True)
class NotedLook:
    """Reads the open lines from a file; while it holds no number, the Store is away."""

    folder: Path

    async def __call__(self) -> Left:
        """See `Order`."""
        lines = int((self.folder / "lines").read_text())
        return Left(lines=lines, batches=min(lines, 1))
