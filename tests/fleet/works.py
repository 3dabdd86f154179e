"""Work for actors that says what happens to it in files; it stands in for a worker."""
import asyncio, os, json
from asyncio import AbstractEventLoop
from dataclasses import dataclass
from pathlib import Path
import uvloop
from batchmill.schedule.scale import Left
@dataclass(frozen=True)
class FileWork:
    folder: Path
    def loop(self) -> AbstractEventLoop: return uvloop.new_event_loop()
    async def run(self, stopping: asyncio.Event) -> None:
        f=self.folder/f"w{os.getpid()}"
        f.write_text("on")
        await stopping.wait()
        f.write_text("drained")
@dataclass(frozen=True)
class FileLook:
    file: Path
    async def __call__(self) -> Left:
        n=int(self.file.read_text())
        return Left(lines=n,batches=min(n,1))
