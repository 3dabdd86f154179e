"""The checks of `batchmill doctor`, each of one thing; what they write they remove."""

import asyncio
import ctypes
import fcntl
import importlib.util
import os
import platform
import resource
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from batchmill.assemble.backends import backend_name, build_backends
from batchmill.assemble.storage import Storage, build_clock, rows_path
from batchmill.backends.backend import Unreachable as BackendAway
from batchmill.backends.weights import default_cache_dir, find
from batchmill.blobs.blobs import BlobMissing, Blobs
from batchmill.cli import data_directory
from batchmill.cli.connect import check_key
from batchmill.cli.exit import Stop
from batchmill.cli.finding import Finding, ok, problem, warning
from batchmill.client.failure import Failed, Refused
from batchmill.client.http import connect
from batchmill.settings import BackendSettings, BadSettings, Settings
from batchmill.store.database import DatabaseAway, Transaction
from batchmill.store.migrate import NewerDatabase, is_current
from batchmill.store.roster import Entry, list_roster
from batchmill.store.server import RefusedDatabase, check_server, server_time

_LITTLE_SPACE = 5 << 30  # bytes
_FLOOR = 64 << 20  # below which work stops
_FEW_FILES = 4096  # open at a time
_SKEW = 5.0  # seconds
_MODELS_SHOWN = 5
_PROBE = b"batchmill doctor was here\n"
_OLDEST = (3, 11)


def python() -> Finding:
    """Look at Python itself."""
    version = platform.python_version()
    if sys.version_info < _OLDEST:
        return problem("python", f"Python {version} is too old.", "Install 3.11 or newer")
    return ok("python", f"Python {version}, {platform.machine()} {platform.system()}.")


def machine(settings: Settings) -> Iterator[Finding]:
    """Look at what this machine has: the built-in engine where it is needed, open files, ports."""
    if not settings.backends and settings.worker:
        yield from _engine(settings)
    yield _open_files()
    held = _is_held(settings.data)
    ports = {"port": (settings.port, "--port"), "metrics_port": (settings.port_of_metrics, "--metrics-port")}
    for name, (port, option) in ports.items():
        yield _port(settings.host, port, name=name, option=option, held=held)


def storage(settings: Settings) -> Iterator[Finding]:
    """Look at the data directory, the rows and the bucket."""
    yield from _folder(settings.data)
    try:
        stored = Storage(settings=settings, clock=build_clock())
    except BadSettings as fault:
        yield problem("database", f"{fault}.", "Install it, or leave --database out")
        return
    yield from asyncio.run(_rows(settings, stored))
    if settings.blobs is not None:
        yield _bucket(stored)


def backends(settings: Settings) -> Iterator[Finding]:
    """Ask each backend for its models: those that the settings name, and those that were added while workers run."""
    entries = [
        *settings.backends,
        *(
            BackendSettings(url=added.url, models=added.models, key_env=added.key_env)
            for added in _roster(settings)
            if added.url is not None and not added.draining
        ),
    ]
    if not entries:
        yield ok("backends", "None is named: the built-in model answers.")
    for entry in entries:
        yield asyncio.run(_backend(settings, entry))


def server(address: str, key: str | None) -> Iterator[Finding]:
    """Ask a server whether it is there and takes the key, and compare clocks."""
    yield from asyncio.run(_server(address, key))


def _engine(settings: Settings) -> Iterator[Finding]:
    try:
        ctypes.CDLL("libgomp.so.1")
        yield ok("libgomp", "It is there.")
    except OSError:
        yield problem("libgomp", "The built-in engine needs it, and it is not there.", "apt-get install libgomp1")
    if importlib.util.find_spec("xllamacpp") is None:
        todo = "pip install 'batchmill[builtin]', or name a server with --backend"
        yield problem("engine", "No --backend is given, and the built-in engine is not installed.", todo)
    elif settings.model is not None:
        there = settings.model.is_file()
        yield (
            ok("engine", f"It is installed, with {settings.model}.")
            if there
            else problem("engine", f"There is no file {settings.model}.", "Name a GGUF file with --model")
        )
    elif find(default_cache_dir()) is None:
        yield warning("engine", "It is installed, its model is not fetched yet.", "batchmill models fetch")
    else:
        yield ok("engine", "It is installed, and its model is there.")


def _open_files() -> Finding:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < _FEW_FILES:
        said = f"A process may have {most:,} files open: backends get few connections."
        return warning("open files", said, f"ulimit -n {_FEW_FILES}, or LimitNOFILE= of systemd")
    return ok("open files", "No limit." if most == resource.RLIM_INFINITY else f"A process may have {most:,}.")


def _port(host: str, port: int, *, name: str, option: str, held: bool) -> Finding:
    if port == 0:
        return ok(name, "A free one is taken.")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as fault:
            if held:
                return ok(name, f"{host}:{port} is taken; a Batchmill runs here already.")
            return problem(name, f"{host}:{port} cannot be listened on: {fault.strerror}.", f"Choose another: {option}")
    return ok(name, f"{host}:{port} is free.")


def _folder(folder: Path) -> Iterator[Finding]:
    known = folder.resolve()
    there = known
    while not os.path.exists(there):  # noqa: PTH110 - Path's raises where a folder above may not be looked into
        there = there.parent
    if not os.access(there, os.W_OK | os.X_OK) or not there.is_dir():
        yield problem("data", f"{known} cannot be written.", "Name another with --data, or change its owner")
        return
    kind = data_directory.filesystem(there)
    if kind in data_directory.NETWORK:
        yield problem("data", f"{known} is on a network filesystem ({kind}).", "Use a local disk: --data")
        return
    free = shutil.disk_usage(there).free
    state = (
        "in use by a running Batchmill"
        if _is_held(folder)
        else "in use by nobody"
        if known == there
        else "not made yet"
    )
    said = f"{known} on {kind or 'an unknown filesystem'}, {free / (1 << 30):,.1f} GiB free, {state}."
    if free < _FLOOR:
        yield problem("data", said, "Make room: uploads and batches stop below 64 MiB")
    elif free < _LITTLE_SPACE:
        yield warning("data", said, "Make room: inputs and results need some")
    else:
        yield ok("data", said)


def _is_held(folder: Path) -> bool:
    """Return whether a Batchmill holds the folder's lock."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


async def _rows(settings: Settings, stored: Storage) -> list[Finding]:
    if settings.is_embedded and not rows_path(settings).is_file():
        return [ok("database", "SQLite under --data; the first `serve` makes it.")]
    name = "SQLite under --data" if settings.is_embedded else "PostgreSQL"
    began = time.time()

    def statements(tx: Transaction) -> tuple[bool, float | None]:
        check_server(tx, allow_unsafe=settings.allow_unsafe_database)
        return is_current(tx), server_time(tx)

    try:
        current, there = await stored.database.read(statements)
    except RefusedDatabase as fault:
        return [problem("database", f"{name}: {fault}.", "Change the server's settings, or take another server")]
    except NewerDatabase as fault:
        return [problem("database", f"{name}: {fault}.", "Install the newer Batchmill again")]
    except (SQLAlchemyError, DatabaseAway, OSError) as fault:
        return [problem("database", f"{name} cannot be read: {fault}.", "Is it up, and is BATCHMILL_DATABASE right")]
    finally:
        await stored.database.close()
    ended = time.time()
    found = [ok("database", f"{name} answers in {1000 * (ended - began):.0f} ms; its tables are up to date.")]
    if not current:
        todo = "batchmill migrate, or the next start does it"
        found = [warning("database", f"{name} answers; its tables are not this version's.", todo)]
    if there is not None:
        found.append(_clock("The database's", there - (began + ended) / 2, slack=(ended - began) / 2))
    return found


def _clock(whose: str, ahead: float, *, slack: float) -> Finding:
    if abs(ahead) > _SKEW + slack:
        which = "ahead of" if ahead > 0 else "behind"
        said = f"{whose} clock is {abs(ahead):,.0f} s {which} this machine's."
        return warning("clock", said, "Let NTP set both: deadlines are judged by them")
    return ok("clock", f"{whose} clock and this machine's agree.")


def _bucket(stored: Storage) -> Finding:
    key = f"doctor-{uuid.uuid4().hex}"
    began = time.monotonic()
    try:
        _there_and_back(stored.blobs, key)
    except BadSettings as fault:
        return problem("bucket", f"{fault}.", "Install it, or set --blobs right")
    except (OSError, BlobMissing) as fault:
        todo = "Are the bucket's name, AWS_ENDPOINT and the credentials right, with leave to put, get and delete"
        return problem("bucket", f"It cannot be used: {fault}.", todo)
    return ok("bucket", f"An object was written, read and deleted in {1000 * (time.monotonic() - began):.0f} ms.")


def _there_and_back(blobs: Blobs, key: str) -> None:
    writer = blobs.writer(key)
    try:
        writer.write(_PROBE)
        writer.finish()
        if blobs.read(key, offset=0, length=len(_PROBE)) != _PROBE:
            raise OSError("other bytes come back than were written")
    finally:
        writer.discard()
        blobs.delete(key)


def _roster(settings: Settings) -> list[Entry]:
    """Return the backends that were added; none where the rows cannot be read, which another check tells."""
    if settings.is_embedded and not rows_path(settings).is_file():
        return []

    async def look() -> list[Entry]:
        database = Storage(settings=settings, clock=build_clock()).database
        try:
            return list(await database.read(list_roster))
        finally:
            await database.close()

    try:
        return asyncio.run(look())
    except (SQLAlchemyError, DatabaseAway, OSError, BadSettings):
        return []


async def _backend(settings: Settings, entry: BackendSettings) -> Finding:
    check = f"backend {backend_name(entry.url)}"
    alone = {"backend": (entry,), "backend_key_env": (), "backend_timeout": ()}
    try:
        ((backend, _),) = build_backends(settings=settings.model_copy(update=alone), engine=None, clock=build_clock())
    except BadSettings as fault:
        return problem(check, f"{fault}.", "Set the variable for `serve` and `worker`, or change --backend")
    began = time.monotonic()
    try:
        models = await backend.models()
    except BackendAway as fault:
        return problem(check, f"{fault}.", "Is it up, and are its address and key right; batches wait until it is")
    finally:
        await backend.close()
    took = 1000 * (time.monotonic() - began)
    keyed = "no key" if entry.key_env is None else f"the key of {entry.key_env}"
    if not models:
        return warning(check, f"It answers in {took:.0f} ms, and lists no model.", "Name them: --backend URL#model")
    more = f" and {len(models) - _MODELS_SHOWN} more" if len(models) > _MODELS_SHOWN else ""
    return ok(check, f"It answers in {took:.0f} ms with {keyed}: {', '.join(models[:_MODELS_SHOWN])}{more}.")


async def _server(address: str, key: str | None) -> list[Finding]:
    try:
        check_key(key)
        async with connect(address, key=key, say=lambda _: None, tries=2) as client:
            began = time.time()
            async with client.open("GET", "/models", whole=True) as answer:
                date = answer.headers.get("Date")
            took = time.time() - began
    except Stop as stop:
        return [problem("server", str(stop), "Set it to the key alone, as it was shown")]
    except ValueError as fault:
        return [problem("server", f"--server {fault}.", "Give one such as http://127.0.0.1:8000")]
    except Refused as refused:
        todo = "Set BATCHMILL_API_KEY to a key of it: `batchmill keys create` makes one"
        return [problem("server", str(refused), todo)]
    except Failed as failed:
        return [problem("server", str(failed), "Start `batchmill serve`, or set BATCHMILL_SERVER right")]
    found = [ok("server", f"{client.base} answers in {1000 * took:.0f} ms and takes the key.")]
    if date is not None:
        try:
            ahead = parsedate_to_datetime(date).timestamp() + 0.5 - (began + took / 2)
        except ValueError:
            return found
        found.append(_clock("The server's", ahead, slack=took / 2 + 0.5))
    return found
