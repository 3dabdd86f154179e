"""The data directory: made, checked, and held by one lock that every process of one `serve` shares."""

import fcntl
import os
import time
from pathlib import Path

from batchmill.cli.exit import Exit, Stop

NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "fuse.sshfs", "fuse.glusterfs", "lustre"}
)
_WAIT_SECONDS = 10.0  # the children of a killed `serve` need a moment to notice
_LOOK_SECONDS = 0.05


def prepare(folder: Path) -> None:
    """Make the folder, readable by its owner only, and check that bytes can be kept there safely.

    Raises:
        Stop: it cannot be made or written, or lies on a network filesystem, whose locks and fsync cannot be trusted.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as fault:
        raise Stop(f"The data directory {folder} cannot be written: {fault.strerror}.", Exit.DATA_UNUSABLE) from fault
    kind = filesystem(folder.resolve())
    if kind in NETWORK:
        raise Stop(
            f"The data directory {folder} is on a network filesystem ({kind}): use a local disk.", Exit.DATA_UNUSABLE
        )


def lock(folder: Path, *, patience: float = _WAIT_SECONDS, shared: bool = False) -> int:
    """Take the folder's lock and return its descriptor, to be handed on to the children.

    The lock lasts until the last process that holds the descriptor has ended, so a restart waits its turn. `shared`:
    beside others whose rows are elsewhere, too, but beside nobody who has rows in the folder.

    Raises:
        Stop: others hold it still after `patience` seconds.
    """
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                os.close(descriptor)
                raise Stop(f"The data directory {folder} is in use by another Batchmill.", Exit.DATA_IN_USE) from None
            time.sleep(_LOOK_SECONDS)
        else:
            return descriptor


def filesystem(folder: Path) -> str:
    """Return the type of the filesystem that the folder is on; "" where the system does not say."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return ""
    best, kind = "", ""
    for _, point, mounted, *_ in mounts:
        at = point.encode().decode("unicode_escape")
        if folder.is_relative_to(at) and len(at) >= len(best):
            best, kind = at, mounted
    return kind
