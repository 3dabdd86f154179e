import shutil
import sys
from pathlib import Path

import pytest

from acceptance.serving import Processes, Server

_HERE = Path(__file__).parent
_CLIENTS = Path(sys.prefix) / "clients"  # made by `make .venv/clients`, beside what the tests themselves run in
_PYTHONS = ("openai-1.109.1", "openai-2.54.0")


@pytest.fixture
def server(processes: Processes) -> Server:
    """Run the product, with a backend that echoes."""
    return processes.ready("--backend", "echo:")


def need(capsys: pytest.CaptureFixture[str], client: str, program: str | None) -> str:
    """Return the program that runs a client; where it is missing, say so where it is seen."""
    if program is None or not (_CLIENTS / client).exists():
        with capsys.disabled():
            print(f"\nNOT RUN with {client}: it is not installed (make .venv/clients)")  # noqa: T201 - a skipped test must not look like a passed one
        pytest.skip(f"{client} is not installed")
    return program


@pytest.mark.parametrize("client", _PYTHONS)
def test_older_python_clients_take_every_answer(
    processes: Processes, server: Server, capsys: pytest.CaptureFixture[str], client: str
) -> None:
    """The untouched client of this version goes from upload to results, strictly, synchronously and with asyncio."""
    python = need(capsys, client, str(_CLIENTS / client / "bin" / "python"))
    told = processes.run([python, str(_HERE / "story.py"), server.url, server.key])
    assert (told.code, told.err) == (0, "")
    assert told.out == f"openai-python {client.removeprefix('openai-')}: told to its end\n"


def test_the_newest_python_client_takes_every_answer(processes: Processes, server: Server) -> None:
    """The client that the tests themselves use tells the same story."""
    told = processes.run([sys.executable, str(_HERE / "story.py"), server.url, server.key])
    assert (told.code, told.err) == (0, "")
    assert told.out.startswith("openai-python 3.")


def test_the_node_client_takes_every_answer(
    processes: Processes, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """The untouched client for Node, which sends the file first and without a length, goes from upload to results."""
    node = need(capsys, "node/node_modules/openai", shutil.which("node"))
    told = processes.run([node, str(_HERE / "story.mjs"), server.url, server.key, str(_CLIENTS / "node")])
    assert (told.code, told.err) == (0, "")
    assert told.out == "openai-node 6.49.0: told to its end\n"
