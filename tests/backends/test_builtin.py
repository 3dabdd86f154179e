import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from batchmill.backends.backend import Call, Reply, Unreachable
from batchmill.backends.builtin import BUILTIN_MODEL, EXIT_CANNOT, EngineOrder, engine_command
from batchmill.backends.http import HttpBackend
from batchmill.backends.wire import WireTransport
from fakeclock import FakeClock

KEY = "sk-for-the-engine"
SENTIMENT = {
    "type": "object",
    "properties": {"sentiment": {"enum": ["positive", "negative"]}},
    "required": ["sentiment"],
    "additionalProperties": False,
}


@dataclass
class Engine:
    """A child process that serves."""

    process: subprocess.Popen[bytes]
    port: int
    url: str


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def spawn(order: bytes, *, pass_fds: tuple[int, ...] = (), path: str = "") -> subprocess.Popen[bytes]:
    """Start the child and give it its order."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([path, *sys.path] if path else sys.path)}
    process = subprocess.Popen(
        engine_command(), stdin=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=pass_fds, env=environment
    )
    assert process.stdin is not None
    process.stdin.write(order)
    process.stdin.flush()
    return process


@contextlib.contextmanager
def running(weights: Path, *, pass_fds: tuple[int, ...] = (), heartbeat_fd: int | None = None) -> Iterator[Engine]:
    """An engine that is ready, killed at the end."""
    port = free_port()
    order = EngineOrder(
        model=str(weights), port=port, api_key=KEY, default_tokens=24, heartbeat_fd=heartbeat_fd, parallel=2
    )
    with spawn(order.line(), pass_fds=pass_fds) as process:
        try:
            while not healthy(port):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    pytest.fail(f"the engine ended with {process.wait(timeout=0.05)}")
            yield Engine(process, port, f"http://127.0.0.1:{port}/v1")
        finally:
            process.kill()


def healthy(port: int) -> bool:
    """Whether the engine is ready."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def engine(weights: Path) -> Iterator[Engine]:
    """One engine for the tests that leave it as it is."""
    with running(weights) as engine:
        yield engine


@pytest.fixture
async def backend_at(clock: FakeClock) -> AsyncIterator[Callable[..., HttpBackend]]:
    """Make backends as the assembly does."""
    async with contextlib.AsyncExitStack() as stack:

        def make(url: str, key: str = KEY) -> HttpBackend:
            transport = WireTransport(clock=clock, max_reply_bytes=1 << 20)
            backend = HttpBackend(url=url, transport=transport, deadline=120.0, key=key)
            stack.push_async_callback(backend.close)
            return backend

        yield make


async def chat(backend: HttpBackend, **fields: object) -> Reply:
    """Ask for a chat completion at temperature 0."""
    body = {"model": BUILTIN_MODEL, "temperature": 0, "messages": [{"role": "user", "content": "Count."}], **fields}
    call = Call(
        endpoint="/v1/chat/completions", body=json.dumps(body).encode(), request_id="r", idempotency_key="line_1"
    )
    return await backend.send(call)


async def test_it_answers_in_the_asked_schema(backend_at: Callable[..., HttpBackend], engine: Engine) -> None:
    """A real model on the CPU fills a JSON schema."""
    reply = await chat(
        backend_at(engine.url),
        messages=[{"role": "user", "content": "Is it positive or negative? I love this film, it made my day."}],
        response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": SENTIMENT}},
    )

    completion = json.loads(reply.body)
    assert reply.status == 200
    assert completion["model"] == BUILTIN_MODEL
    assert json.loads(completion["choices"][0]["message"]["content"]) == {"sentiment": "positive"}


async def test_it_lists_its_one_model(backend_at: Callable[..., HttpBackend], engine: Engine) -> None:
    """The engine is a backend like others."""
    assert await backend_at(engine.url).models() == (BUILTIN_MODEL,)


async def test_it_wants_its_key(backend_at: Callable[..., HttpBackend], engine: Engine) -> None:
    """Other processes on the machine cannot use the engine."""
    with pytest.raises(Unreachable, match="refused our key"):
        await backend_at(engine.url, key="sk-guessed-wrongly").models()


async def test_an_answer_without_a_limit_ends(backend_at: Callable[..., HttpBackend], engine: Engine) -> None:
    """The order's limit holds where the line has none, and only there."""
    backend = backend_at(engine.url)
    endless = json.loads((await chat(backend, ignore_eos=True)).body)
    limited = json.loads((await chat(backend, ignore_eos=True, max_tokens=30)).body)

    assert endless["usage"]["completion_tokens"] == 24
    assert limited["usage"]["completion_tokens"] == 30


async def test_a_message_without_role_is_answered(backend_at: Callable[..., HttpBackend], engine: Engine) -> None:
    """The engine calls it its own error, 500, with a reason; it goes on serving."""
    reply = await chat(backend_at(engine.url), messages=[{"content": "hi"}])

    assert reply.status == 500
    assert b"Missing 'role'" in reply.body
    assert healthy(engine.port)


async def test_health_and_metrics_do_not_wait_for_slots(backend_at: Callable[..., HttpBackend], engine: Engine) -> None:
    """With many more requests open than it has slots, the engine still says how it is."""
    backend = backend_at(engine.url)
    asked = [asyncio.create_task(chat(backend, ignore_eos=True, max_tokens=400)) for _ in range(24)]
    request = urllib.request.Request(
        f"http://127.0.0.1:{engine.port}/metrics", headers={"Authorization": f"Bearer {KEY}"}
    )
    processing = b"llamacpp:requests_processing 2\n"
    while processing not in await asyncio.to_thread(read, request):
        pass

    assert await asyncio.to_thread(healthy, engine.port)
    assert not any(task.done() for task in asked)
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)


def read(request: urllib.request.Request) -> bytes:
    """The body of the answer."""
    with urllib.request.urlopen(request, timeout=20) as reply:  # noqa: S310 - the same fixed URL
        body: bytes = reply.read()
        return body


async def test_sigterm_ends_it_at_once(backend_at: Callable[..., HttpBackend], weights: Path) -> None:
    """An open request does not hold it up, and its client sees a lost connection, not an answer."""
    with running(weights) as engine:
        backend = backend_at(engine.url)
        await backend.models()
        attempt = asyncio.create_task(chat(backend, ignore_eos=True, max_tokens=1_900))
        await asyncio.wait([attempt], timeout=0.3)
        engine.process.send_signal(signal.SIGTERM)

        assert await asyncio.to_thread(engine.process.wait, 10) == 0
        assert (await attempt).status is None


def test_it_ends_with_its_parent_and_beats_until_then(weights: Path) -> None:
    """The heart beats once the model is loaded; when the pipe from the parent closes, the child ends."""
    ours, theirs = os.pipe()
    with running(weights, pass_fds=(theirs,), heartbeat_fd=theirs) as engine:
        os.close(theirs)
        assert os.read(ours, 1) == b"."
        assert engine.process.stdin is not None
        engine.process.stdin.close()
        assert engine.process.wait(10) == 0
    while os.read(ours, 100):
        pass
    os.close(ours)


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        (b'{"model": "/none.gguf", "port": 1, "api_key": "k"}\n', b"The model /none.gguf is not a file"),
        (b'{"model": "/none.gguf", "port": 1}\n', b"missing required field `api_key`"),
        (b"serve!\n", b"JSON is malformed"),
    ],
)
def test_what_cannot_help_to_repeat_has_its_own_exit_status(order: bytes, reason: bytes) -> None:
    """A parent can tell "start me again" from "do not", and has one line to show."""
    with spawn(order) as child:
        _, said = child.communicate(timeout=20)

    assert child.returncode == EXIT_CANNOT
    assert reason in said
    assert said.count(b"\n") == 1


@pytest.mark.parametrize(
    ("source", "advice"),
    [
        ("raise ModuleNotFoundError('No module named xllamacpp')", b"batchmill[builtin]"),
        ("raise ImportError('libgomp.so.1: cannot open shared object file')", b"apt-get install libgomp1"),
    ],
)
def test_a_machine_without_the_engine_is_told_what_to_install(
    tmp_path: Path, weights: Path, source: str, advice: bytes
) -> None:
    """The wheel, or the system library that it needs."""
    (tmp_path / "xllamacpp.py").write_text(source)
    order = EngineOrder(model=str(weights), port=free_port(), api_key=KEY)
    with spawn(order.line(), path=str(tmp_path)) as child:
        _, said = child.communicate(timeout=20)

    assert child.returncode == EXIT_CANNOT
    assert advice in said


def test_a_taken_port_and_a_broken_model_are_told_apart(tmp_path: Path) -> None:
    """The engine itself says the same of both."""
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF, or not")
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = EngineOrder(model=str(broken), port=other.getsockname()[1], api_key=KEY)
        with spawn(taken.line()) as child:
            _, said = child.communicate(timeout=20)
        assert b"Address already in use" in said
    free = EngineOrder(model=str(broken), port=free_port(), api_key=KEY)
    with spawn(free.line()) as child:
        _, said = child.communicate(timeout=20)

    assert b"could not load" in said
    assert child.returncode == 1
