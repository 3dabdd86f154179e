"""The built-in engine as a child process, started and waited for: what `serve` and `run` have without --backend."""

import asyncio
import secrets
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path

from batchmill.assemble.backends import Engine
from batchmill.backends.builtin import BUILTIN_MODEL, EngineOrder, engine_command
from batchmill.backends.weights import WeightsMissing, default_cache_dir, find_or_fetch
from batchmill.cli.exit import Exit, Stop
from batchmill.cli.supervisor import Child, Supervisor
from batchmill.settings import Settings

_ENGINE_SECONDS = 60.0  # the engine may take so long until it answers
_ENGINE_SILENCE = 10.0  # it beats once a second
_LOAD_SECONDS = 300.0  # until its first beat: a large model, from a slow disk
_LOOK_SECONDS = 0.1
_GGUF = b"GGUF"  # what such a file begins with


async def start_engine(
    settings: Settings, supervisor: Supervisor, stop: asyncio.Event, lock: int, *, say: Callable[[str], None]
) -> Engine:
    """Start the built-in engine and wait until it answers; `say` tells how its weights are fetched.

    Raises:
        Stop: there is no such model, or no engine.
    """
    model = await asyncio.to_thread(_weights, say) if settings.model is None else settings.model
    if not model.is_file():
        raise Stop(f"There is no model file {model}.", Exit.NO_BUILTIN_MODEL)
    with model.open("rb") as stream:
        if stream.read(len(_GGUF)) != _GGUF:  # the engine would say so again and again
            raise Stop(f"{model} is no model: a GGUF file is needed.", Exit.NO_BUILTIN_MODEL)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    key = secrets.token_hex(24)
    alias = BUILTIN_MODEL if settings.model is None else settings.model.stem
    path = str(model.resolve())

    def order(heartbeat: int) -> bytes:
        return EngineOrder(model=path, port=port, api_key=key, alias=alias, heartbeat_fd=heartbeat).line()

    child = Child(
        name="engine",
        command=engine_command(),
        order=order,
        descriptors=[lock],
        silence=max(settings.lease, _ENGINE_SILENCE),
        start=_LOAD_SECONDS,
        grace=2.0,
        verdict=Exit.NO_BUILTIN_MODEL,
    )
    supervisor.keep(child)
    await wait_for(answers("127.0.0.1", port, "/health"), _ENGINE_SECONDS, supervisor, stop)
    return Engine(url=f"http://127.0.0.1:{port}/v1", key=key)


def _weights(say: Callable[[str], None]) -> Path:
    try:
        return find_or_fetch(default_cache_dir(), say)
    except WeightsMissing as fault:
        raise Stop(str(fault), Exit.NO_BUILTIN_MODEL) from fault


async def wait_for(
    answering: Coroutine[object, object, None], seconds: float, supervisor: Supervisor, stop: asyncio.Event
) -> None:
    """Return when it answers, when `stop` is set, or after this time; raise what makes going on impossible."""
    asked = asyncio.create_task(answering)
    watching = asyncio.create_task(supervisor.watch(stop))
    await asyncio.wait([asked, watching], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if watching.done():
        await watching
    watching.cancel()


async def answers(host: str, port: int, path: str) -> None:
    """Return when this path answers 200."""
    while True:
        try:
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            status = await reader.readline()
            writer.close()
        except OSError:
            status = b""
        if b" 200 " in status:
            return
        await asyncio.sleep(_LOOK_SECONDS)
