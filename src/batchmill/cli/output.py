"""A file that a command writes: it appears when it is whole; a pipe or a device takes what comes, as it comes."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from batchmill.cli.exit import RunExit, Stop
from batchmill.client.download import settle


@contextmanager
def appearing(path: Path, *, reads: Sequence[Path] = (), at_once: bool = False) -> Iterator[Path]:
    """Yield where to write; a file appears under its own name when all of it is durable, or not at all.

    Args:
        path: The file's name; what is no file, such as /dev/stdout, is written to and never replaced.
        reads: What it is made of, which it must not take the place of.
        at_once: It is to be seen while it grows.

    Raises:
        Stop: it cannot be written, or is one of those that are read.
    """
    with written(path):
        if path.is_dir():
            raise Stop(f"{path} is a folder: name a file in it.", RunExit.USAGE)
        if path.exists() and any(each.exists() and each.samefile(path) for each in reads):
            raise Stop(f"{path} is what is read: choose another name for the output.", RunExit.USAGE)
        if at_once or (path.exists() and not path.is_file()):
            yield path
            return
        place = path.resolve()  # a link stays, and leads to the new file
        part = place.with_name(f".{place.name}.{os.getpid()}.part")
        try:
            yield part
            with part.open("rb") as stream:
                os.fsync(stream.fileno())
            settle(part, place)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Say what cannot be written, and why; a reader of a pipe that has seen enough is no such reason.

    Raises:
        Stop: as said.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as fault:
        raise Stop(f"{path} cannot be written: {fault.strerror or fault}.", RunExit.USAGE) from fault
