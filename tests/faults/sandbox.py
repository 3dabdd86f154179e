"""Where faults may be made: namespaces of their own, small disks in files, and the power cut.

A program that `enter` runs sees only its own processes, mounts and network: a kill cannot reach past it, and its mounts
vanish with it. `python -m faults.sandbox [xfs]`, run so, fails with what this machine does not permit.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

_TESTS = Path(__file__).parents[1]
_NAMESPACES = ("unshare", "-m", "-p", "-n", "-f", "--mount-proc", "--kill-child")
_TOOLS = ("unshare", "ip")
_DISK_TOOLS = ("mount", "umount", "strace", "xfs_io", "mkfs.ext4", "mkfs.xfs")
_FAST = Path("/dev/shm")  # noqa: S108 - memory, where the machine has it: a point takes a fraction of a second
_IMAGES = {  # the smallest that each filesystem makes and a test fits in
    "ext4": ("96M", ("mkfs.ext4", "-q", "-F")),
    "xfs": ("320M", ("mkfs.xfs", "-q", "-f")),
}
_UNMOUNT_SECONDS = 10.0
FILESYSTEMS = tuple(_IMAGES)


def enter(module: str, *arguments: object, quiet: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE ARGUMENTS` in namespaces of its own, and wait for its end; `quiet` keeps what it says."""
    paths = [str(_TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [*_NAMESPACES, sys.executable, "-m", module, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=quiet,
        text=True,
        check=False,
    )


@cache
def not_permitted(filesystem: str | None = None) -> str | None:
    """Say why this machine cannot run the faults, those on this filesystem if one is named; None if it can."""
    if os.geteuid() != 0:
        return "namespaces and loop mounts need root"
    missing = [tool for tool in (*_TOOLS, *(_DISK_TOOLS if filesystem else ())) if shutil.which(tool) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (make .venv/faults)"
    tried = enter("faults.sandbox", *filter(None, [filesystem]))
    return None if tried.returncode == 0 else tried.stderr.strip().rpartition("\n")[2]


def need(capsys: pytest.CaptureFixture[str], filesystem: str | None = None) -> None:
    """Skip a test that this machine does not permit, and say so where it is seen: never green by silence."""
    reason = not_permitted(filesystem)
    if reason is not None:
        with capsys.disabled():
            print(f"\nNOT RUN{f' on {filesystem}' if filesystem else ''}: {reason}")  # noqa: T201 - a skipped test must not look like a passed one
        pytest.skip(reason)


def run(*command: object) -> None:
    """Run a command of the system.

    Raises:
        CalledProcessError: it failed; what it said is on standard error.
    """
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A small disk in a file, and where it is mounted."""

    filesystem: str
    image: Path
    mount: Path

    def make(self) -> None:
        """Lay an empty filesystem down."""
        size, command = _IMAGES[self.filesystem]
        self.image.unlink(missing_ok=True)
        run("truncate", "-s", size, self.image)
        run(*command, self.image)

    def copy_of(self, other: "Disk") -> None:
        """Become a copy of a disk that is not mounted."""
        run("cp", "--sparse=always", other.image, self.image)

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        """Mount the disk for a while; whatever may still use it is dead by the end."""
        self.mount.mkdir(exist_ok=True)
        run("mount", "-o", "loop", self.image, self.mount)
        try:
            yield self.mount
        finally:
            self._unmount()

    def _unmount(self) -> None:
        """Unmount; the kernel closes the files of the dead a moment after their death."""
        until = time.monotonic() + _UNMOUNT_SECONDS
        while subprocess.run(["umount", self.mount], stderr=subprocess.DEVNULL, check=False).returncode:
            assert time.monotonic() < until, f"{self.mount} is in use"
            time.sleep(0.01)

    def cut(self) -> None:
        """Cut the power: from now on nothing reaches the disk, and what had not reached it by now is gone.

        The filesystem's own "go down now" without a flush of its log. It does not tear or reorder sectors, as a drive
        may whose cache lies.
        """
        run("xfs_io", "-x", "-c", "shutdown", self.mount)


@contextmanager
def fast_folder() -> Iterator[Path]:
    """Give a folder for disk images, in memory where there is such a place."""
    place = _FAST if _FAST.is_dir() else None
    # What is mounted still after a fault goes with the namespace; the fault is what must be seen.
    with TemporaryDirectory(prefix="batchmill-faults-", dir=place, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def loopback() -> None:
    """Bring up the loopback of this network namespace, which begins without one."""
    run("ip", "link", "set", "lo", "up")


def _main(arguments: Sequence[str]) -> None:
    loopback()
    for filesystem in arguments:
        _try_disk(filesystem)


def _try_disk(filesystem: str) -> None:
    run("strace", "-o", os.devnull, "true")
    with fast_folder() as folder:
        disk = Disk(filesystem=filesystem, image=folder / "disk", mount=folder / "mount")
        disk.make()
        with disk.mounted():
            disk.cut()


if __name__ == "__main__":
    _main(sys.argv[1:])
