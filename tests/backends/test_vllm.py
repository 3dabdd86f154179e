import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from batchmill.backends.builtin import EXIT_CANNOT
from batchmill.backends.vllm import VllmOrder, shepherd_command

_ORDER = VllmOrder(
    model="org/model-8b", port=4711, api_key="sk-secret", gpus=2, options=["--max-model-len=8192"], heartbeat_fd=3
)

# Stands in for vLLM: it has a process of its own, as vLLM has, and says how it was started.
_STUB = """#!{python}
import json, os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
told = {{"argv": sys.argv[1:], "key": os.environ["VLLM_API_KEY"], "pids": [os.getpid(), child.pid]}}
open("{told}.tmp", "w").write(json.dumps(told))
os.rename("{told}.tmp", "{told}")
time.sleep({seconds})
"""


def test_the_command_line_is_that_of_vllm() -> None:
    """The model is served under its own name on 127.0.0.1, across its GPUs, with the operator's own options last."""
    assert _ORDER.command() == [
        "vllm",
        "serve",
        "org/model-8b",
        "--host=127.0.0.1",
        "--port=4711",
        "--served-model-name=org/model-8b",
        "--tensor-parallel-size=2",
        "--max-model-len=8192",
    ]


def test_the_key_is_on_no_command_line() -> None:
    """It gets its key by the environment, which only its own user can read."""
    assert "sk-secret" not in " ".join(_ORDER.command())
    assert _ORDER.environment()["VLLM_API_KEY"] == "sk-secret"


@contextmanager
def _shepherd(folder: Path, *, seconds: float | None = 60) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A shepherd with its order, and the descriptor on which it beats; without `seconds` there is no vLLM."""
    if seconds is not None:
        stub = folder / "vllm"
        stub.write_text(_STUB.format(python=sys.executable, told=folder / "told", seconds=seconds))
        stub.chmod(0o755)
    reads, writes = os.pipe()
    environment = {"PATH": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        shepherd_command(), bufsize=0, stdin=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=[writes], env=environment
    ) as process:
        os.close(writes)
        assert process.stdin is not None
        process.stdin.write(VllmOrder(model="m", port=4711, api_key="sk-secret", heartbeat_fd=writes).line())
        try:
            yield process, reads
        finally:
            os.close(reads)
            process.kill()


def _told(folder: Path) -> dict[str, object]:
    while not (folder / "told").exists():
        time.sleep(0.02)
    told: dict[str, object] = json.loads((folder / "told").read_text())
    return told


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _wait_until_gone(pids: object) -> None:
    assert isinstance(pids, list)
    assert len(pids) == 2
    while any(map(_is_alive, pids)):
        time.sleep(0.02)


@pytest.mark.timeout(30)
def test_vllm_lives_with_its_shepherd(tmp_path: Path) -> None:
    """It is started with the order's command and key, a byte comes while it lives, and it ends with the parent."""
    with _shepherd(tmp_path) as (process, reads):
        told = _told(tmp_path)
        assert told["argv"] == VllmOrder(model="m", port=4711, api_key="", heartbeat_fd=0).command()[1:]
        assert told["key"] == "sk-secret"
        assert os.read(reads, 1) == b"."
        assert process.stdin is not None
        process.stdin.close()  # as when the worker dies
        process.wait()
        _wait_until_gone(told["pids"])


@pytest.mark.timeout(30)
def test_vllm_ends_on_sigterm(tmp_path: Path) -> None:
    """SIGTERM ends vLLM and the processes of its own."""
    with _shepherd(tmp_path) as (process, reads):
        told = _told(tmp_path)
        os.read(reads, 1)
        process.send_signal(signal.SIGTERM)
        process.wait()
        _wait_until_gone(told["pids"])


@pytest.mark.timeout(30)
def test_a_vllm_that_dies_ends_its_shepherd(tmp_path: Path) -> None:
    """The supervisor sees it end, and starts it again; nothing of the old one stays."""
    with _shepherd(tmp_path, seconds=0.1) as (process, _reads):
        told = _told(tmp_path)
        assert process.wait() == 1
        _wait_until_gone(told["pids"])


@pytest.mark.timeout(30)
def test_a_node_without_vllm_says_so(tmp_path: Path) -> None:
    """Starting it again cannot help there."""
    with _shepherd(tmp_path, seconds=None) as (process, _reads):
        assert process.wait() == EXIT_CANNOT
        assert process.stderr is not None
        assert b"vLLM cannot be started" in process.stderr.read()
