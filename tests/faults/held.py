"""A forked process that does one piece of work, and strace that holds it at a system call."""

import json
import os
import re
import select
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PATIENCE = 20  # seconds that one process may take
CALL = re.compile(r"^(?:\[pid +\d+\] )?(\w+)\(", re.MULTILINE)


@dataclass(slots=True)
class Bare:
    """A forked process that does one operation: it says `ready`, waits for a byte, and says what it acknowledges."""

    pid: int
    said: int
    go: int

    @classmethod
    def fork(cls, work: Callable[[Callable[[Any], None], Callable[[], None]], None]) -> "Bare":
        """Fork; `work` is given a way to say something, and one to wait for the start."""
        said_r, said_w = os.pipe()
        go_r, go_w = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                signal.alarm(_PATIENCE)
                work(lambda value: _say(said_w, value), lambda: _wait_for_byte(go_r))
                code = 0
            except BaseException as fault:  # noqa: BLE001 - this process ends here, and says why
                _say(said_w, {"fault": f"{type(fault).__name__}: {fault} at {_place(fault)}"})
            finally:
                os._exit(code)
        os.close(said_w)
        os.close(go_r)
        return cls(pid=pid, said=said_r, go=go_w)

    def line(self) -> Any:  # noqa: ANN401 - what it said
        """Return the next thing that it says."""
        text = b""
        while not text.endswith(b"\n"):
            byte = os.read(self.said, 1)
            assert byte, "it died before it said anything"
            text += byte
        return json.loads(text)

    def start(self) -> None:
        """Let it begin."""
        os.write(self.go, b".")

    def kill(self) -> None:
        """End it, whatever it does."""
        os.kill(self.pid, signal.SIGKILL)

    def reap(self) -> list[Any]:
        """Wait for its end and return what else it said; whoever traces it must have gone."""
        os.waitpid(self.pid, 0)
        with os.fdopen(self.said, "rb") as said:
            rest = said.read()
        os.close(self.go)
        return [json.loads(line) for line in rest.splitlines()]


def _say(descriptor: int, value: object) -> None:
    os.write(descriptor, json.dumps(value).encode() + b"\n")


def _wait_for_byte(descriptor: int) -> None:
    os.read(descriptor, 1)


def _place(fault: BaseException) -> str:
    frame = fault.__traceback__
    places = []
    while frame is not None:
        places.append(f"{Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}")
        frame = frame.tb_next
    return " > ".join(places[-3:])


class Traced:
    """strace on a bare process; it is held where the tampering says so, until it is killed."""

    def __init__(self, bare: Bare, *, kinds: Sequence[str], inject: str | None = None) -> None:
        command = [
            "strace",
            "-f",
            "-y",
            "-s",
            "0",
            "-p",
            str(bare.pid),
            "-e",
            f"trace={','.join(f'?{k}' for k in kinds)}",
        ]
        if inject is not None:
            command += ["-e", f"inject={inject}"]
        self._strace = subprocess.Popen(command, stderr=subprocess.PIPE)
        assert self._strace.stderr is not None
        self._output = self._strace.stderr
        assert b"attached" in self._output.readline(), "strace cannot attach"
        self.text = ""

    def until(self, k: int | None) -> str | None:
        """Read on until the k-th call has been entered, and return it; None if the process ends before."""
        while data := self._read():
            self.text += data.decode(errors="replace")
            entered = [match.start() for match in CALL.finditer(self.text)]
            if k is not None and len(entered) >= k:
                return self.text[entered[k - 1] :].splitlines()[0]
        return None

    def _read(self) -> bytes:
        if not select.select([self._output], [], [], _PATIENCE)[0]:
            raise TimeoutError(f"strace has said nothing for {_PATIENCE} s, and last: {self.text[-500:]}")
        return os.read(self._output.fileno(), 1 << 16)

    def end(self) -> None:
        """End strace, once the process is killed: it would sleep on, and the dead would stay its own."""
        self._strace.kill()
        self._strace.wait()
        self._output.close()
