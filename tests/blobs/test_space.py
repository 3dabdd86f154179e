"""Room on the disk: when work stops, and what becomes of the reserve."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchmill.blobs.space import Boundless, Change, Space, Verdict, Volume, is_full, judge, reserve_of
from volume import fill, remount, small_volume

MIB = 1 << 20
BIG = 100 << 30  # of such a volume the reserve and the floor are 64 MiB
R = 64 * MIB


@pytest.mark.parametrize(
    ("size", "reserve"),
    [(0, 0), (20 * MIB, MIB), (1000 * MIB, 50 * MIB), (1280 * MIB, R), (BIG, R)],
)
def test_the_reserve_is_small_on_a_small_volume(size: int, reserve: int) -> None:
    """64 MiB, or a twentieth of the volume where that is less."""
    assert reserve_of(size) == reserve


@pytest.mark.parametrize(
    ("free", "held", "short", "change"),
    [
        (BIG, True, None, Change.NONE),
        (R, True, None, Change.NONE),
        (R - 1, True, "the disk is full: 63 MiB are free, 64 MiB are needed", Change.NONE),
        (R // 4, True, "the disk is full: 16 MiB are free, 64 MiB are needed", Change.NONE),
        (R // 4 - 1, True, "the disk is full: 15 MiB are free, 64 MiB are needed", Change.DROP),
        (0, True, "the disk is full: 0 MiB are free, 64 MiB are needed", Change.DROP),
        (0, False, "the disk is full: 0 MiB are free, 128 MiB are needed", Change.NONE),
        # Right after the drop: the reserve's size is free, and does not count.
        (R + R // 4 - 1, False, "the disk is full: 79 MiB are free, 128 MiB are needed", Change.NONE),
        (2 * R - 1, False, "the disk is full: 127 MiB are free, 128 MiB are needed", Change.NONE),
        (2 * R, False, None, Change.NONE),
        (2 * R + R // 4 - 1, False, None, Change.NONE),
        (2 * R + R // 4, False, None, Change.MAKE),
    ],
)
def test_what_free_space_means(free: int, held: bool, short: str | None, change: Change) -> None:
    """The table of free space: below the floor work stops, far below it the reserve goes, well above it is made."""
    assert judge(Volume(free=free, size=BIG), held=held) == Verdict(short=short, change=change)


@pytest.mark.parametrize("free", [2 * R + R // 4, 3 * R, BIG // 2])
def test_making_the_reserve_stops_nothing(free: int) -> None:
    """What the reserve takes leaves enough to go on, so nothing swings to and fro."""
    assert judge(Volume(free=free, size=BIG), held=False).change is Change.MAKE
    assert judge(Volume(free=free - R, size=BIG), held=True) == Verdict(short=None, change=Change.NONE)


def test_dropping_the_reserve_starts_nothing() -> None:
    """The space that a drop frees is for rows, not for work."""
    after = judge(Volume(free=R // 4 - 1 + R, size=BIG), held=False)
    assert after.short is not None
    assert after.change is Change.NONE


@pytest.mark.parametrize(
    ("volume", "held", "verdict"),
    [
        (
            Volume(free=BIG, size=BIG, inodes=0, all_inodes=16),
            True,
            Verdict(short="the disk is short of inodes: 0 are free, 1 are needed", change=Change.DROP),
        ),
        (
            Volume(free=BIG, size=BIG, inodes=0, all_inodes=16),
            False,
            Verdict(short="the disk is short of inodes: 0 are free, 1 are needed", change=Change.NONE),
        ),
        (Volume(free=BIG, size=BIG, inodes=1, all_inodes=16), True, Verdict(short=None, change=Change.NONE)),
        (
            Volume(free=BIG, size=BIG, inodes=1, all_inodes=16),
            False,
            Verdict(short=None, change=Change.MAKE),
        ),
        (
            Volume(free=BIG, size=BIG, inodes=63, all_inodes=1 << 20),
            True,
            Verdict(short="the disk is short of inodes: 63 are free, 64 are needed", change=Change.NONE),
        ),
        (
            Volume(free=BIG, size=BIG, inodes=63, all_inodes=1 << 20),
            False,
            Verdict(short="the disk is short of inodes: 63 are free, 64 are needed", change=Change.NONE),
        ),
        (
            Volume(free=0, size=BIG, inodes=63, all_inodes=1 << 20),
            True,
            Verdict(short="the disk is short of inodes: 63 are free, 64 are needed", change=Change.DROP),
        ),
        (Volume(free=BIG, size=BIG, inodes=64, all_inodes=1 << 20), True, Verdict(short=None, change=Change.NONE)),
        (
            Volume(free=BIG, size=BIG, read_only=True),
            False,
            Verdict(short="the disk is read-only", change=Change.NONE),
        ),
    ],
)
def test_other_ways_to_be_short(volume: Volume, held: bool, verdict: Verdict) -> None:
    """Inodes run out, too, and a volume may become read-only; each has its own words."""
    assert judge(volume, held=held) == verdict


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_what_waits_for_room(number: int) -> None:
    """No space, no quota, and a read-only volume are waited for."""
    assert is_full(OSError(number, ""))


@pytest.mark.parametrize("fault", [OSError(errno.EIO, ""), OSError("no number"), ValueError(), KeyboardInterrupt()])
def test_what_does_not_wait(fault: BaseException) -> None:
    """An I/O error, and whatever is no error of the system, is a fault."""
    assert not is_full(fault)


def test_a_bucket_is_never_short() -> None:
    """Room without a bound says nothing and keeps nothing."""
    room = Boundless()
    room.keep()
    room.give()
    assert room.short() is None


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A volume of 40 MiB: its reserve is 2 MiB."""
    with small_volume(tmp_path / "volume", mib=40) as folder:
        yield folder


def blocks(path: Path) -> int:
    """Return the bytes that a file has on the volume."""
    return path.stat().st_blocks * 512


def test_the_reserve_is_allocated(volume: Path) -> None:
    """On a volume with room the reserve is made with all its blocks, once."""
    space = Space(folder=volume)
    space.keep()
    reserve = volume / "reserve"
    assert blocks(reserve) >= 2 * MIB
    made = reserve.stat().st_mtime_ns
    space.keep()
    assert reserve.stat().st_mtime_ns == made
    assert space.short() is None


def test_a_volume_fills_and_empties(volume: Path) -> None:
    """Below the floor work stops; when others take the rest the reserve is given up; both come back by themselves."""
    space = Space(folder=volume)
    space.keep()
    fill(volume, leave=MIB)
    space.keep()
    assert space.short() == "the disk is full: 1 MiB are free, 2 MiB are needed"
    assert (volume / "reserve").exists()
    fill(volume, name="rest")
    space.keep()
    assert not (volume / "reserve").exists()
    (volume / "a row").write_bytes(bytes(MIB))
    assert space.short() is not None
    (volume / "ballast").unlink()
    assert space.short() is None
    space.keep()
    assert (volume / "reserve").exists()
    assert space.short() is None


def test_a_write_that_was_refused_gets_the_reserve(volume: Path) -> None:
    """Whoever was told that there is no space drops the reserve at once; a second time there is nothing to drop."""
    space = Space(folder=volume)
    space.keep()
    fill(volume)
    row = volume / "a row"
    with pytest.raises(OSError, match="No space") as refused:
        row.write_bytes(bytes(MIB))
    assert is_full(refused.value)
    space.give()
    space.give()
    row.write_bytes(bytes(MIB))


@pytest.mark.parametrize("left", [MIB, 3 * MIB])
def test_a_reserve_that_is_not_whole_is_none(volume: Path, left: int) -> None:
    """What a crash left of a reserve, too short or sparse, is completed where there is room."""
    with (volume / "reserve").open("wb") as stream:
        stream.truncate(left)
    Space(folder=volume).keep()
    assert blocks(volume / "reserve") >= 2 * MIB


def test_a_reserve_that_is_not_whole_goes_where_there_is_no_room(volume: Path) -> None:
    """The same where there is none: it holds back nothing, so it goes."""
    (volume / "reserve").write_bytes(bytes(MIB))
    fill(volume)
    Space(folder=volume).keep()
    assert not (volume / "reserve").exists()


def test_inodes_run_out(tmp_path: Path) -> None:
    """A volume with space and without inodes says so, and gives up the reserve's own inode."""
    with small_volume(tmp_path / "volume", mib=40, inodes=16) as folder:
        space = Space(folder=folder)
        space.keep()
        number = 0
        while os.statvfs(folder).f_favail:
            (folder / str(number)).touch()
            number += 1
        assert space.short() == "the disk is short of inodes: 0 are free, 1 are needed"
        space.keep()
        (folder / "journal").touch()


def test_a_volume_turns_read_only(volume: Path) -> None:
    """A volume that has become read-only says so; keeping the reserve is no fault there."""
    space = Space(folder=volume)
    space.keep()
    remount(volume, "ro")
    assert space.short() == "the disk is read-only"
    space.keep()
    space.give()
    with pytest.raises(OSError, match="Read-only") as refused:
        (volume / "x").touch()
    assert is_full(refused.value)
    remount(volume, "rw")
    assert space.short() is None
