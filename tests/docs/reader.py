"""A reader who does all that a page says, in a folder of their own: types its commands, writes its files."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from acceptance.serving import clean_environment, until
from docs.page import Block, Command, commands, is_shown

_STARTS = re.compile(r"batchmill (serve|worker)\b(?!.*--help)")
_SAYS_IT_RUNS = {"serve": re.compile(r"listens on (\S+)"), "worker": re.compile(r"Metrics on \S+")}
_PORTS = re.compile(r" --(?:metrics-)?port \d+")
_KEY = re.compile(r"sk-bm-\w{20,}")
_SHOWN_KEY = "sk-bm-…"  # on a page it stands for the key that was printed last
_PORT, _METRICS_PORT = 8000, 8001  # where `serve` and `worker` listen if they are not told
_STOP = "^C"  # typed where the last server runs
_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Started:
    """What runs on in a terminal of its own: `ports` are those that it would have on the reader's machine."""

    process: subprocess.Popen[bytes]
    ports: frozenset[int]


@dataclass(slots=True, kw_only=True)
class Reader:
    """Follows one page.

    Args:
        folder: Where it is done.
        stands_for: What names on the page stand for on this machine: hosts, databases, buckets.
        environment: Variables that are set before the page begins.
    """

    folder: Path
    stands_for: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    _running: list[_Started] = field(default_factory=list)
    _addresses: dict[str, str] = field(default_factory=dict)
    _key: str = _SHOWN_KEY

    def follow(self, block: Block) -> None:
        """Do what one block says; a block of any other language only shows something."""
        if block.title is not None:
            (self.folder / block.title).write_text(self._here(block.text), encoding="utf-8")
        elif block.language == "console":
            for command in commands(block):
                self._type(command, f"line {block.line}, `{command.text}`")
        elif block.language == "python":
            said = self._run([sys.executable, "-c", self._here(block.text)])
            assert said.returncode == 0, f"line {block.line}: {said.stdout}{said.stderr}"

    def end(self) -> None:
        """Stop what still runs."""
        self._stop(len(self._running))

    def _type(self, command: Command, where: str) -> None:
        if command.text == _STOP:
            self._stop(1)
            return
        text = self._here(command.text)
        starts = _STARTS.match(text)
        if starts:
            self._start(text, starts[1], where)
            return
        exporting = text.startswith("export ")
        said = self._run(["bash", "-euo", "pipefail", "-c", f"{text}; env -0" if exporting else text])
        output = said.stdout + said.stderr
        assert said.returncode == 0, f"{where} ended with {said.returncode}:\n{output}"
        if exporting:
            found = dict(each.split("=", 1) for each in said.stdout.split("\0") if "=" in each)
            self.environment |= dict(found.items() - self._environment().items())
            return
        self._learn_key(output)
        missing = is_shown(tuple(map(self._here, command.shown)), output)
        assert missing is None, f"{where} does not print {missing!r}, but:\n{output}"

    def _start(self, text: str, what: str, where: str) -> None:
        """Start what runs on, with the page's own words, on free ports in place of those that it would have."""
        port = _option(text, "port", _PORT)
        own = {port} if what == "serve" else set[int]()
        own.add(_option(text, "metrics-port", port + 1 if what == "serve" else _METRICS_PORT))
        ports = frozenset(own - {0})
        for other in self._running:
            assert not ports & other.ports, (
                f"{where}: port {ports & other.ports} is taken by what the page started before"
            )
        out = self.folder / f".{what}-{len(self._running)}"
        free = {"BATCHMILL_METRICS_PORT": "0"} | ({"BATCHMILL_PORT": "0"} if what == "serve" else {})
        with out.open("wb") as output:
            command = ["bash", "-c", f"exec {_PORTS.sub(' ', text)}"]
            environment = self._environment() | free
            process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=output, stderr=output)
        self._running.append(_Started(process=process, ports=ports))

        def runs() -> re.Match[str] | None:
            assert process.poll() is None, f"`{text}` ended with {process.returncode}:\n{out.read_text()}"
            return _SAYS_IT_RUNS[what].search(out.read_text())

        address = until(runs, _SECONDS)
        if what == "serve" and address is not None:
            self._addresses[f"127.0.0.1:{port}"] = address[1].removeprefix("http://")
        self._learn_key(out.read_text())

    def _stop(self, last: int) -> None:
        """Stop what was started last, so many of them, all at a time."""
        started = [self._running.pop() for _ in range(last)]
        for each in started:
            each.process.terminate()
        for each in started:
            each.process.wait(timeout=60)

    def _learn_key(self, output: str) -> None:
        found = _KEY.search(output)
        self._key = found[0] if found else self._key

    def _here(self, text: str) -> str:
        """Return a text of the page with this machine's own names in it."""
        for name, real in {**self.stands_for, **self._addresses, _SHOWN_KEY: self._key}.items():
            text = text.replace(name, real)
        return text

    def _environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        server = self._addresses.get(f"127.0.0.1:{_PORT}")  # where commands ask that are told nothing else
        told = {"BATCHMILL_SERVER": f"http://{server}"} if server else {}
        return clean_environment(PATH=path, **told) | self.environment

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        environment = self._environment()
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False
        )


def _option(text: str, name: str, default: int) -> int:
    said = re.search(rf" --{name} (\d+)", text)
    return int(said[1]) if said else default


@contextmanager
def reader(folder: Path, *, stands_for: dict[str, str], environment: dict[str, str]) -> Iterator[Reader]:
    """Give a page its reader, and end what the page has started."""
    follower = Reader(folder=folder, stands_for=stands_for, environment=environment)
    try:
        yield follower
    finally:
        follower.end()
