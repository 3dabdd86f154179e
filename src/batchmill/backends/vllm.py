"""vLLM as a child process beside a worker, on 127.0.0.1: what a GPU node of a fleet has as its built-in engine.

The parent starts `shepherd_command()`, writes one line (`VllmOrder.line()`) to its standard input and keeps that pipe
open: when it closes, vLLM and its own processes end. vLLM is ready when `GET /health` on its port answers 200, which
may take minutes; until then it is a backend that is away, which is waited for.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, NoReturn

import msgspec

from batchmill.backends.builtin import EXIT_CANNOT

_STDIN: Final = 0
_BEAT_SECONDS: Final = 1.0


class VllmOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What vLLM is to serve.

    Attributes:
        model: A name of the Hugging Face hub, or a folder.
        port: On 127.0.0.1.
        api_key: The bearer token that every call under /v1 has to bring.
        gpus: On how many GPUs the model lies; which ones, CUDA_VISIBLE_DEVICES says, which Ray sets.
        options: Options of vLLM's own, such as `--max-model-len=8192`.
        heartbeat_fd: A descriptor that gets one byte a second while vLLM's process lives.
    """

    model: str
    port: int
    api_key: str
    gpus: int = 1
    options: Sequence[str] = ()
    heartbeat_fd: int

    def line(self) -> bytes:
        """Return the order as the line that the child reads."""
        return msgspec.json.encode(self) + b"\n"

    def command(self) -> list[str]:
        """Return vLLM's command line. The key is not in it, where every user of the machine could read it."""
        own = ["--host=127.0.0.1", f"--port={self.port}", f"--served-model-name={self.model}"]
        return ["vllm", "serve", self.model, *own, f"--tensor-parallel-size={self.gpus}", *self.options]

    def environment(self) -> dict[str, str]:
        """Return what vLLM's environment has beside this process's: the key, and no reports to its makers."""
        return {"VLLM_API_KEY": self.api_key, "VLLM_NO_USAGE_STATS": "1"}


def shepherd_command() -> list[str]:
    """Return what to start: this interpreter, this module."""
    return [sys.executable, "-m", "batchmill.backends.vllm"]


def main() -> NoReturn:
    """Be the child process: read the order, start vLLM, and end with it, with the parent, or on SIGTERM."""
    with open(_STDIN, "rb", buffering=0, closefd=False) as stdin:  # unbuffered: nothing past the line is taken
        line = stdin.readline()
    if not line:
        sys.exit(0)  # the parent died before it said anything
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which decides the order of ending
    order = msgspec.json.decode(line, type=VllmOrder)
    try:
        vllm = subprocess.Popen(  # noqa: S603 - the operator's own model and options
            order.command(),
            env=os.environ | order.environment(),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as fault:
        told = f"vLLM cannot be started ({fault.strerror}): install it on the nodes with GPUs."
        print(told, file=sys.stderr, flush=True)  # noqa: T201 - a child speaks to its parent on stderr
        os._exit(EXIT_CANNOT)

    def end() -> NoReturn:
        """End vLLM's whole session: its engine runs in processes of their own."""
        with suppress(ProcessLookupError):
            os.killpg(vllm.pid, signal.SIGKILL)
        os._exit(1)

    signal.signal(signal.SIGTERM, lambda _number, _frame: end())
    threading.Thread(target=_end_with_parent, args=(end,), daemon=True).start()
    while vllm.poll() is None:
        with suppress(OSError):  # a reader that has gone is a parent that has died: the thread sees to it
            os.write(order.heartbeat_fd, b".")
        time.sleep(_BEAT_SECONDS)
    end()


def _end_with_parent(end: Callable[[], NoReturn]) -> None:
    while os.read(_STDIN, 4096):
        pass
    end()


if __name__ == "__main__":
    main()
