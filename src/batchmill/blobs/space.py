"""Room on the disk: whether work may go on, and the reserve that lets rows, cancels and deletes go on without it.

    floor    free space below which uploads, validation, new sends and finalizing stop, with their reason
    reserve  a file as large as the floor; dropped when something has eaten the space below the floor, too

Both are 64 MiB, or 5 % of the volume where that is less (design, "Full disk"; invariant R11). Inodes have a floor, too,
of 64 or 5 %: without one, each that a delete makes free lets work go on for a moment.
"""

import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

_MOST_RESERVE = 64 << 20
_MOST_INODES = 64
_SHARE = 20  # the reserve is at most a twentieth of the volume, the inodes' floor of its inodes
_FAR = 4  # a quarter of the floor: so little is left when others fill the disk, or when what we wrote last did not stop
_BLOCK = 512  # bytes; st_blocks counts in these whatever the filesystem
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


def is_full(fault: BaseException) -> bool:
    """Say whether a write failed for want of space, a quota, or because the volume has become read-only.

    That is no fault of the process: it waits. Any other OSError of a write (EIO) ends it.
    """
    return isinstance(fault, OSError) and fault.errno in _FULL


class Room(Protocol):
    """Whether there is room for more bytes. All calls block, for as long as statvfs takes."""

    def short(self) -> str | None:
        """Return why there is too little room to go on, in words; None while there is enough."""
        ...

    def keep(self) -> None:
        """Hold the reserve as it should be; called once a second by one process."""
        ...

    def give(self) -> None:
        """Drop the reserve, because a write has just failed for want of space."""
        ...


class Boundless:
    """Room that never runs short: a bucket's."""

    def short(self) -> str | None:
        """See `Room`."""
        return None

    def keep(self) -> None:
        """See `Room`."""

    def give(self) -> None:
        """See `Room`."""


class Change(Enum):
    """What is to be done with the reserve."""

    NONE = "none"
    MAKE = "make"
    DROP = "drop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """What statvfs says. `free` and `size` in bytes; `inodes` free of `all_inodes`; None: any number."""

    free: int
    size: int
    inodes: int | None = None
    all_inodes: int = 0
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What follows from a volume's state: why work stops (None: it does not), and what becomes of the reserve."""

    short: str | None
    change: Change


def reserve_of(size: int) -> int:
    """Return the bytes of the reserve of a volume of this size; the floor is as high."""
    return min(_MOST_RESERVE, size // _SHARE)


def judge(volume: Volume, *, held: bool) -> Verdict:
    """Judge a volume; `held`: the reserve is there, so that its bytes are not among the free ones.

    While it is dropped its size does not count as free. It is made again a quarter of the floor above the point at
    which work goes on, so that making it does not stop the work.
    """
    if volume.read_only:
        return Verdict(short="the disk is read-only", change=Change.NONE)
    reserve = floor = reserve_of(volume.size)
    needed = floor if held else floor + reserve
    change = Change.NONE
    if held and volume.free < floor // _FAR:
        change = Change.DROP
    elif not held and volume.free >= needed + floor // _FAR:
        change = Change.MAKE
    short = None
    least = max(1, min(_MOST_INODES, volume.all_inodes // _SHARE))
    if volume.inodes is not None and volume.inodes < least:
        short = f"the disk is short of inodes: {volume.inodes} are free, {least} are needed"
        if held and volume.inodes == 0:
            change = Change.DROP  # its own inode is one that a row's journal can have
        elif change is Change.MAKE:
            change = Change.NONE
    elif volume.free < needed:
        short = f"the disk is full: {volume.free >> 20} MiB are free, {-(-needed >> 20)} MiB are needed"
    return Verdict(short=short, change=change)


class Space:
    """The room on a folder's volume, and the reserve in it. Any process may ask; one keeps the reserve."""

    def __init__(self, *, folder: Path) -> None:
        self._folder = folder
        self._reserve = folder / "reserve"

    def short(self) -> str | None:
        """See `Room`."""
        volume = self._volume()
        return judge(volume, held=self._held(volume)).short

    def keep(self) -> None:
        """See `Room`."""
        volume = self._volume()
        held = self._held(volume)
        match judge(volume, held=held).change:
            case Change.MAKE:
                self._make(reserve_of(volume.size))
            case Change.DROP:
                self.give()
            case Change.NONE:
                if not held and not volume.read_only:
                    self.give()  # one of another size, or that its maker did not finish

    def give(self) -> None:
        """See `Room`."""
        with suppress(OSError):  # a volume that has become read-only keeps it; where there is none, nothing is to do
            self._reserve.unlink()

    def _make(self, size: int) -> None:
        """Allocate every block: a sparse file would hold nothing back."""
        try:
            descriptor = os.open(self._reserve, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, size)
            finally:
                os.close(descriptor)
        except OSError as fault:
            self.give()
            if not is_full(fault):
                raise

    def _volume(self) -> Volume:
        found = os.statvfs(self._folder)
        return Volume(
            free=found.f_bavail * found.f_frsize,
            size=found.f_blocks * found.f_frsize,
            inodes=found.f_favail if found.f_files else None,
            all_inodes=found.f_files,
            read_only=bool(found.f_flag & os.ST_RDONLY),
        )

    def _held(self, volume: Volume) -> bool:
        try:
            found = self._reserve.stat()
        except FileNotFoundError:
            return False
        size = reserve_of(volume.size)
        return found.st_size >= size and found.st_blocks * _BLOCK >= size
