"""The built-in model's engine: llama.cpp's own server in a child process, on 127.0.0.1.

The parent starts `engine_command()`, writes one line (`EngineOrder.line()`) to its standard input and keeps that pipe
open: when it closes, the child ends. The engine is ready when `GET /health` on its port answers 200.
"""

import importlib
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NoReturn

import msgspec

__all__ = [
    "BUILTIN_KV_TOKENS",
    "BUILTIN_MODEL",
    "BUILTIN_SLOTS",
    "EXIT_CANNOT",
    "EngineMissing",
    "EngineOrder",
    "engine_command",
    "serve_engine",
]

BUILTIN_MODEL: Final = "smollm2-135m-instruct"
BUILTIN_SLOTS: Final = 4
BUILTIN_KV_TOKENS: Final = 11_000  # of prompts that have left their slot: 256 MiB, at 23 KB a token
EXIT_CANNOT: Final = 78
"""The child's exit status when starting it again cannot help (EX_CONFIG): no engine, no weights, a bad order."""

_EXIT_FAILED: Final = 1
_STDIN: Final = 0
_HOST: Final = "127.0.0.1"
# Each open connection holds one of these threads; with too few, /health waited 2 s behind 24 requests (measured).
_HTTP_THREADS: Final = 64
_QUIET: Final = -1


class EngineMissing(Exception):  # noqa: N818 - it names a state of the machine, not a mistake of ours
    """The engine cannot be loaded here; the message is one sentence with what to do."""


class EngineOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the engine is to serve. The defaults are measured.

    Attributes:
        model: The path of a GGUF file.
        port: On 127.0.0.1; a free one, chosen by the parent, so that the URL outlives a restart.
        api_key: The bearer token that every call but /health has to bring.
        alias: The name under which the model is listed.
        parallel: Slots. More of them hardly help on a CPU, and a prompt prefix is cached per slot.
        context: Tokens for the prompt and the answer of one request.
        default_tokens: The longest answer where the request sets no limit; the engine itself knows none.
        cache_mib: Memory for prompts that have left their slot (the engine's own default is 8 GiB).
        threads: None takes one less than there are cores: two spinning on a busy machine fell to a tenth.
        heartbeat_fd: A descriptor that gets one byte a second, once it has loaded.
    """

    model: str
    port: int
    api_key: str
    alias: str = BUILTIN_MODEL
    parallel: int = BUILTIN_SLOTS
    context: int = 2048
    default_tokens: int = 512
    cache_mib: int = 256
    threads: int | None = None
    heartbeat_fd: int | None = None

    def line(self) -> bytes:
        """The order as the line that the child reads."""
        return msgspec.json.encode(self) + b"\n"


def engine_command() -> list[str]:
    """What to start: this interpreter, this module."""
    return [sys.executable, "-m", "batchmill.backends.builtin"]


def serve_engine(order: EngineOrder) -> NoReturn:
    """Serve until standard input ends or SIGTERM comes; never returns, and ends without cleaning up.

    Destroying the server would wait for its open requests (299 s were seen), so the process just stops.

    Raises:
        EngineMissing: xllamacpp or a library that it needs is not there, or the model is no file.
        RuntimeError: The port is taken, or the engine refuses the model.
    """
    # Only from here on: before, SIGTERM ends the process as it ends any other.
    signal.signal(signal.SIGTERM, lambda _number, _frame: os._exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which decides the order of ending
    if not Path(order.model).is_file():
        raise EngineMissing(f"The model {order.model} is not a file: run `batchmill models fetch`, or set its path.")
    engine = _load()
    _require_free(order.port)
    try:
        _server = engine.Server(_parameters(engine, order))  # it serves as long as the name lives
    except RuntimeError as error:
        raise RuntimeError(f"The engine could not load {order.model}: it is no GGUF model, or too large.") from error
    if order.heartbeat_fd is not None:  # not before: an engine that cannot load has not begun
        threading.Thread(target=_beat, args=(order.heartbeat_fd,), daemon=True).start()
    while os.read(_STDIN, 4096):
        pass
    os._exit(0)


def _parameters(engine: ModuleType, order: EngineOrder) -> Any:  # noqa: ANN401 - a compiled module without types
    parameters = engine.CommonParams()
    parameters.model.path = order.model
    parameters.model_alias = {order.alias}
    parameters.hostnames = [_HOST]
    parameters.port = order.port
    parameters.api_keys = [order.api_key]
    parameters.n_parallel = order.parallel
    parameters.n_ctx = order.parallel * order.context
    parameters.n_predict = order.default_tokens
    # A request's answer then does not depend on what runs beside it, nor can one overflow fail all.
    parameters.kv_unified = False
    parameters.cache_ram_mib = order.cache_mib
    threads = order.threads or max(1, _cores() - 1)
    parameters.cpuparams.n_threads = threads
    parameters.cpuparams_batch.n_threads = threads
    parameters.n_threads_http = _HTTP_THREADS
    parameters.fit_params = False  # fitting to a GPU's memory: no use here, and half of the time to start
    parameters.endpoint_metrics = True
    parameters.endpoint_slots = False  # would show prompts
    parameters.ui = False
    parameters.verbosity = _QUIET
    return parameters


def _cores() -> int:
    """The cores that this process may use, which in a container are fewer than the machine has."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _load() -> ModuleType:
    os.environ["OMP_WAIT_POLICY"] = "passive"  # read once, when the library loads
    try:
        return importlib.import_module("xllamacpp")
    except ModuleNotFoundError as error:
        raise EngineMissing("The built-in engine is not installed: run pip install 'batchmill[builtin]'.") from error
    except ImportError as error:
        if "libgomp" in str(error):
            raise EngineMissing(
                "The built-in engine needs libgomp: apt-get install libgomp1, or your system's package of that name."
            ) from error
        raise EngineMissing(f"The built-in engine cannot be loaded: {error}.") from error


def _require_free(port: int) -> None:
    """Say so if the port is taken; the engine's own message does not."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise RuntimeError(f"The engine cannot listen on {_HOST}:{port}: {error.strerror}.") from error


def _beat(descriptor: int) -> NoReturn:
    """Write a byte each second; a reader that has gone is a parent that has died."""
    while True:
        try:
            os.write(descriptor, b".")
        except OSError:
            os._exit(0)
        time.sleep(1)


def main() -> NoReturn:
    """The child process: read the order, serve it."""
    with open(_STDIN, "rb", buffering=0, closefd=False) as stdin:  # unbuffered: nothing past the line is taken
        line = stdin.readline()
    if not line:
        sys.exit(0)  # the parent died before it said anything
    try:
        serve_engine(msgspec.json.decode(line, type=EngineOrder))
    except (EngineMissing, msgspec.MsgspecError) as error:
        print(error, file=sys.stderr, flush=True)  # noqa: T201 - a child speaks to its parent on stderr
        os._exit(EXIT_CANNOT)
    except RuntimeError as error:
        print(error, file=sys.stderr, flush=True)  # noqa: T201 - the same
        os._exit(_EXIT_FAILED)


if __name__ == "__main__":
    main()
