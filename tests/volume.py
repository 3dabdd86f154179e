"""A volume of a few megabytes that a test can fill: a tmpfs, mounted where the tests run as root."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_volume(folder: Path, *, mib: int, inodes: int = 0) -> Iterator[Path]:
    """Mount a volume of this size over the folder; a test that may not mount is reported as not run."""
    folder.mkdir(exist_ok=True)
    options = f"size={mib}m" + (f",nr_inodes={inodes}" if inodes else "")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=False)
    if mounted.returncode != 0:
        pytest.skip("this machine does not let the tests mount a volume")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, *, leave: int = 0, name: str = "ballast") -> Path:
    """Take all space of the volume but `leave` bytes, in a file that the test may remove."""
    path = folder / name
    with path.open("wb") as stream:
        found = os.statvfs(folder)
        os.posix_fallocate(stream.fileno(), 0, found.f_bavail * found.f_frsize - leave)
    return path


def remount(folder: Path, option: str) -> None:
    """Change the volume's options: `ro`, `rw`."""
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)
