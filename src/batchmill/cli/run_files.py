"""The files of one `batchmill run`: what it reads, what it writes, and its state beside the output."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from batchmill.blobs.disk import DiskBlobs, sync_folder
from batchmill.cli.exit import RunExit, Stop

_LOCK = "lock"  # stays when all else goes: it is held
_ROWS = "batchmill.sqlite3"
_SUFFIX = ".jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFiles:
    """The paths, as the user gave them.

    Raises:
        Stop: the output has no name of its own, which the others are made of.
    """

    input: Path
    output: Path

    def __post_init__(self) -> None:
        if self.output.name in {"", ".."}:
            raise Stop("The output is a folder: name a file in it.", RunExit.USAGE)

    @property
    def errors(self) -> Path:
        """Where the lines go that failed."""
        return self.output.with_name(self.output.name.removesuffix(_SUFFIX) + ".errors" + _SUFFIX)

    @property
    def state(self) -> Path:
        """The data directory of the run."""
        return self.output.with_name(self.output.name + ".run")

    @property
    def log(self) -> Path:
        """What the worker has to say."""
        return self.state / "run.log"

    @property
    def _published(self) -> Path:
        """Is there from the moment on at which output and errors are the run's own."""
        return self.state / "published"

    def check(self) -> None:
        """Refuse what cannot be meant, before anything is made.

        Raises:
            Stop: the input is no readable file, or an output is in the way that no run of ours has written.
        """
        if not self.input.is_file():
            what = "is not a regular file, and is read where it lies" if self.input.exists() else "is not there"
            raise Stop(f"The input {self.input} {what}.", RunExit.USAGE)
        if not os.access(self.input, os.R_OK):
            raise Stop(f"The input {self.input} cannot be read: Permission denied.", RunExit.USAGE)
        if not self.output.parent.is_dir():
            raise Stop(f"There is no folder {self.output.parent} for the output.", RunExit.USAGE)
        for path in (self.output, self.errors):
            if path.resolve() == self.input.resolve() or (path.exists() and path.samefile(self.input)):
                raise Stop(f"{path} is the input: choose another name for the output.", RunExit.USAGE)
            if os.path.lexists(path) and not self._published.exists():
                raise Stop(
                    f"{path} exists already, and is not of this run: move it away, or choose another output.",
                    RunExit.USAGE,
                )

    def start_over(self) -> None:
        """Remove what an earlier run left: its output, its errors, then its state. The caller holds the lock."""
        for path in (self.output, self.errors):
            path.unlink(missing_ok=True)
        sync_folder(self.output.parent)
        # The rows first: killed in the middle, what is left of the bytes is garbage and not a damaged state.
        for path in sorted(self.state.iterdir(), key=lambda path: not path.name.startswith(_ROWS)):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != _LOCK:
                path.unlink()
        sync_folder(self.state)

    def publish(self, blobs: DiskBlobs, *, output_key: str | None, errors_key: str | None) -> None:
        """Let output and errors appear, whole and durable, the output last; those that are there stay as they are.

        An output without a line that succeeded is there too, and empty: it says that the run is complete.

        Raises:
            Stop: a file of that name has appeared since the run began.
        """
        self.check()
        self._published.touch()
        sync_folder(self.state)
        if errors_key is not None and not self.errors.exists():
            blobs.link(errors_key, self.errors)
        if not self.output.exists():
            if output_key is None:
                self.output.touch()
            else:
                blobs.link(output_key, self.output)
        sync_folder(self.output.parent)
