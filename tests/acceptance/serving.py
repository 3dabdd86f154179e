"""Real processes for the acceptance tests: `batchmill serve`, the witness, and how each of them is ended, by pid."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from openai import OpenAI

T = TypeVar("T")
Row = tuple[Any, ...]

BATCHMILL = [sys.executable, "-m", "batchmill"]
_WITNESS = Path(__file__).parents[1] / "witness.py"
_START_SECONDS = 60.0
_DEAD = "ZX"  # a zombie holds nothing any more


def until(condition: Callable[[], T], seconds: float, *, every: float = 0.01) -> T:
    """Return what the condition returns as soon as that is true; fail after so many seconds."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {getattr(condition, '__name__', condition)}")
        time.sleep(every)
    return found


FOUND = "found"  # as BATCHMILL_WINDOW: it is not set


def clean_environment(**more: str) -> dict[str, str]:
    """Return the environment without Batchmill's own variables, and with these.

    The window is the one that most tests count on; who wants it found asks for `FOUND`.
    """
    others = {name: value for name, value in os.environ.items() if not name.startswith("BATCHMILL_")}
    return {name: value for name, value in (others | {"BATCHMILL_WINDOW": "8"} | more).items() if value != FOUND}


class Installation(Protocol):
    """Where rows and bytes are, and how a test looks at them behind the product's back.

    `environment` is what each process is told of them; `prints_key` says whether the first start prints a key.
    """

    environment: Mapping[str, str]
    prints_key: bool

    def query(self, data: Path, sql: str, *values: object) -> list[Row]:
        """Read rows, beside the server or after its death; `?` stands for a value. It never writes."""
        ...

    def sizes(self, data: Path) -> dict[str, int]:
        """Return how many bytes are there under each key, those that nobody finished, too."""
        ...

    def unsound(self, data: Path) -> list[Row]:
        """Return what the database finds wrong with itself."""
        ...

    def settle(self) -> None:
        """Return once nothing that killed processes had begun can change the rows any more."""
        ...


class OneMachine:
    """SQLite and a disk, both in the data directory."""

    environment: Mapping[str, str] = MappingProxyType({})
    prints_key = True

    def query(self, data: Path, sql: str, *values: object) -> list[Row]:
        """See `Installation`."""
        return query(data, sql, *values)

    def sizes(self, data: Path) -> dict[str, int]:
        """See `Installation`."""
        return {path.name: path.stat().st_size for path in (data / "blobs").glob("*/*")}

    def unsound(self, data: Path) -> list[Row]:
        """See `Installation`."""
        wrong = [row for row in query(data, "PRAGMA integrity_check") if row != ("ok",)]
        return wrong + query(data, "PRAGMA foreign_key_check")

    def settle(self) -> None:
        """See `Installation`: nobody but those processes writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proc:
    """A line of the process table."""

    pid: int
    state: str
    parent: int
    session: int


def process_table() -> Iterator[Proc]:
    """Yield every process of the machine."""
    for name in os.listdir("/proc"):  # noqa: PTH208 - thousands of times a test
        if name.isdecimal():
            with suppress(OSError):  # it has ended meanwhile
                text = Path("/proc", name, "stat").read_text()
                state, parent, _, session = text.rpartition(")")[2].split()[:4]
                yield Proc(pid=int(name), state=state, parent=int(parent), session=int(session))


@dataclass(slots=True, kw_only=True)
class Running:
    """A process that leads a session of its own, with all that it started."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path

    def alive(self) -> list[int]:
        """Return the pids of the session, the leader's first, so that nobody is started again."""
        return sorted(p.pid for p in process_table() if p.session == self.process.pid and p.state not in _DEAD)

    def kill_everything(self) -> None:
        """Send SIGKILL to the whole session until nothing of it is left."""
        while alive := self.alive():
            for pid in alive:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.poll()  # reap the leader
        self.process.wait(timeout=10)

    def stop(self, number: int = signal.SIGTERM, *, seconds: float = 60.0) -> int:
        """Send a signal to the leader, wait for its end and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=seconds)


@dataclass(slots=True, kw_only=True)
class Server(Running):
    """A running `batchmill serve`."""

    data: Path

    @property
    def url(self) -> str:
        """Its address, as it prints it."""
        return str(re.search(r"listens on (\S+)", self.out.read_text())[1])  # type: ignore[index]

    @property
    def port(self) -> int:
        """Its port."""
        return int(self.url.rpartition(":")[2])

    @property
    def key(self) -> str:
        """The key that it prints at its first start on a data directory."""
        return str(re.search(r"sk-bm-\w+", self.out.read_text())[0])  # type: ignore[index]

    def readiness(self) -> dict[str, Any]:
        """Return what it says of itself at `/readyz`: `ready`, and `checks` part by part."""
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request("GET", "/readyz")
            said: dict[str, Any] = json.loads(connection.getresponse().read())
        return said

    def child(self, role: str) -> int:
        """Return the pid of the `api` or the `worker`: the API's is the one that listens."""
        mine = {p.pid for p in process_table() if p.parent == self.process.pid and p.state not in _DEAD}
        listening = {pid for pid in mine if _listening_socket(self.port) in _open_files(pid)}
        (pid,) = listening if role == "api" else mine - listening
        return pid


@dataclass(slots=True, kw_only=True)
class Witness(Running):
    """A running witness."""

    log: Path

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.out.read_text().split()[-1])

    @property
    def url(self) -> str:
        """What `--backend` takes."""
        return f"http://127.0.0.1:{self.port}/v1"

    def starts(self) -> list[str]:
        """Return the SHA-256 of each body that arrived, in order."""
        lines = [line.split() for line in self.log.read_text().splitlines()]
        return [line[3] for line in lines if line[0] == "start"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str


@dataclass(slots=True, kw_only=True)
class Processes:
    """Starts processes and clients, and ends whatever still runs when the test is over."""

    folder: Path
    stack: ExitStack
    installation: Installation
    _started: list[Running] = field(default_factory=list)

    def launch(self, *options: object, environment: dict[str, str] | None = None, data: Path | None = None) -> Server:
        """Start `batchmill serve` on a free port and do not wait for anything."""
        place = self.folder / "data" if data is None else data
        command = [*BATCHMILL, "serve", "--data", str(place), "--port", "0", *map(str, options)]
        process, out, err = self._start(command, environment or self._environment)
        return self._keep(Server(process=process, out=out, err=err, data=place))

    def serve(self, *options: object, environment: dict[str, str] | None = None, data: Path | None = None) -> Server:
        """Start `batchmill serve` on a free port and wait until it says where it listens."""
        server = self.launch(*options, environment=environment, data=data)
        self._wait_for(server, "Batchmill listens on ")
        return server

    def ready(self, *options: object) -> Server:
        """Start `batchmill serve` on a free port and wait until all of it is ready."""
        server = self.serve(*options)
        until(lambda: server.readiness()["ready"], _START_SECONDS)
        return server

    def witness(self, *, log: Path, port: int = 0, latency_ms: float = 0, padding: int = 0) -> Witness:
        """Start a witness and wait until it listens."""
        options = ["--log", log, "--port", port, "--latency-ms", latency_ms, "--padding", padding]
        process, out, err = self._start([sys.executable, str(_WITNESS), *map(str, options)], self._environment)
        witness = self._keep(Witness(process=process, out=out, err=err, log=log))
        self._wait_for(witness, "listening on ")
        return witness

    def run(self, command: Sequence[str], *, environment: dict[str, str] | None = None) -> Ended:
        """Run a command to its end."""
        process, out, err = self._start(command, environment or self._environment)
        self._keep(Running(process=process, out=out, err=err))
        code = process.wait(timeout=_START_SECONDS)
        return Ended(code=code, out=out.read_text(), err=err.read_text())

    def batchmill(self, *words: object, environment: dict[str, str] | None = None) -> Ended:
        """Run a `batchmill` command to its end."""
        return self.run([*BATCHMILL, *map(str, words)], environment=environment)

    def start(self, *words: object, environment: dict[str, str] | None = None) -> Running:
        """Start a `batchmill` command and do not wait for anything."""
        process, out, err = self._start([*BATCHMILL, *map(str, words)], environment or self._environment)
        running: Running = self._keep(Running(process=process, out=out, err=err))
        return running

    def key(self, server: Server) -> str:
        """Return a key: the one that is printed at the first start or, where rows are shared, one that is made."""
        if self.installation.prints_key:
            return server.key
        return self.batchmill("keys", "create", "--data", server.data).out.strip()

    def query(self, server: Server, sql: str, *values: object) -> list[Row]:
        """Read rows of a server, also after its death; `?` stands for a value."""
        return self.installation.query(server.data, sql, *values)

    def client(self, server: Server, key: str) -> OpenAI:
        """Return the official client, which takes nothing that its types do not allow and tries nothing twice."""
        client = OpenAI(
            base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=30.0, _strict_response_validation=True
        )
        return self.stack.enter_context(client)

    def end(self) -> None:
        """Kill what is left; pytest shows what they said if the test has failed."""
        for running in self._started:
            running.kill_everything()
            print(f"--- {running.err}\n{running.err.read_text()[-20_000:]}")  # noqa: T201 - for the one who reads a failure

    @property
    def _environment(self) -> dict[str, str]:
        return clean_environment(**self.installation.environment)

    def _start(self, command: Sequence[str], environment: dict[str, str]) -> tuple[subprocess.Popen[bytes], Path, Path]:
        out, err = (self.folder / f"process-{len(self._started)}.{end}" for end in ("out", "err"))
        with out.open("wb") as output, err.open("wb") as errors:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                env=environment,
                start_new_session=True,
            )
        return process, out, err

    def _keep(self, running: Any) -> Any:  # noqa: ANN401 - the very thing that is handed in
        self._started.append(running)
        return running

    def _wait_for(self, running: Running, text: str) -> None:
        def has_said_so() -> bool:
            if running.process.poll() is not None:
                raise AssertionError(f"ended with {running.process.returncode}: {running.err.read_text()}")
            return re.search(rf"^{text}.*\n", running.out.read_text(), re.MULTILINE) is not None

        until(has_said_so, _START_SECONDS)


@contextmanager
def processes_in(folder: Path, installation: Installation | None = None) -> Iterator[Processes]:
    """Give a test its processes, whose output goes to files in the folder; on one machine if nothing else is said."""
    with ExitStack() as stack:
        processes = Processes(folder=folder, stack=stack, installation=installation or OneMachine())
        stack.callback(processes.end)
        yield processes


def query(data: Path, sql: str, *values: object) -> list[Row]:
    """Read rows from a data directory's database, beside the server or after its death; never writes."""
    with closing(sqlite3.connect(f"file:{data / 'batchmill.sqlite3'}?mode=ro", uri=True, timeout=30)) as connection:
        return connection.execute(sql, values).fetchall()


def _listening_socket(port: int) -> str:
    """Return the name that a process' open files have for the socket that listens on a port."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(f":{port:04X}") and fields[3] == "0A":
            return f"socket:[{fields[9]}]"
    raise AssertionError(f"nobody listens on port {port}")


def _open_files(pid: int) -> set[str]:
    found = set()
    with suppress(OSError):  # the process has ended
        for link in list(Path("/proc", str(pid), "fd").iterdir()):
            with suppress(OSError):  # closed meanwhile
                found.add(str(link.readlink()))
    return found
