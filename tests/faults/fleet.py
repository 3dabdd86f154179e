"""The processes of a run, each started again when it ends: some workers on one data directory, one API, the witness."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue

from faults.launcher import Death, Launcher, Site

_WITNESS = Path(__file__).parents[1] / "witness.py"
_BREATH_SECONDS = 0.2  # before a process is started again that ended by itself: it may do so at once again
API = "api"
_STARTED = re.compile(rb'\{"worker": "(\w+)", [^{}]*"event": "worker started", "process": "([\w.]+)"')


@dataclass(slots=True, kw_only=True)
class Slot:
    """A place for one process at a time."""

    role: str
    name: str = ""
    pid: int | None = None
    started: int = 0
    start_at: float = 0.0
    sent: signal.Signals | None = None  # the last signal that was to end the process
    stopped: bool = False


@dataclass(slots=True)
class Fleet:
    """Keeps one process in each slot. Not shared between threads."""

    launcher: Launcher
    site: Site
    log: Path
    slots: list[Slot]
    own_ends: Counter[int] = field(default_factory=Counter)  # by exit status: those that nobody had told to end
    names: dict[str, str] = field(default_factory=dict)  # of processes, by their worker's id
    _deaths: SimpleQueue[Death] = field(default_factory=SimpleQueue)
    _read: int = 0

    def __post_init__(self) -> None:
        """Hear of deaths from now on."""
        self.launcher.listen(self._deaths.put)

    @property
    def workers(self) -> list[Slot]:
        """The slots of workers whose process lives and runs."""
        return [slot for slot in self.slots if slot.role != API and slot.pid is not None and not slot.stopped]

    @property
    def begun(self) -> list[Slot]:
        """Those of them that have said that they work."""
        self._learn_names()
        named = set(self.names.values())
        return [slot for slot in self.workers if slot.name in named]

    @property
    def api(self) -> Slot:
        """The slot of the API."""
        return next(slot for slot in self.slots if slot.role == API)

    def keep(self) -> None:
        """Take note of deaths, and start what is missing."""
        with suppress(Empty):
            while True:
                self._bury(self._deaths.get_nowait())
        now = time.monotonic()
        for slot in self.slots:
            if slot.pid is None and now >= slot.start_at:
                slot.started += 1
                slot.name = f"{slot.role}{self.slots.index(slot)}.{slot.started}"
                slot.sent, slot.stopped = None, False
                slot.pid = self.launcher.start(self.site, slot.role, slot.name)

    def end(self, slot: Slot, number: signal.Signals) -> None:
        """Send a signal that is to end the slot's process."""
        slot.sent = number
        self.signal(slot, number)

    @staticmethod
    def signal(slot: Slot, number: signal.Signals) -> None:
        """Send a signal, if there still is a process: it is ours, and only we would start another under its pid."""
        if slot.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(slot.pid, number)

    def retire(self, *, seconds: float) -> bool:
        """End the workers in good order and start none again; False if one did not end in time."""
        for slot in list(self.workers):
            self.end(slot, signal.SIGTERM)
            slot.start_at = float("inf")
        end = time.monotonic() + seconds
        while any(slot.pid is not None for slot in self.slots if slot.role != API) and time.monotonic() < end:
            self.keep()
            time.sleep(0.01)
        return not self.workers

    def slot_of(self, worker_id: str) -> Slot | None:
        """Return the slot whose living process runs this worker."""
        self._learn_names()
        return next((slot for slot in self.workers if self.names.get(worker_id) == slot.name), None)

    def worker_id(self, slot: Slot) -> str | None:
        """Return the id of a slot's worker, if it has begun."""
        self._learn_names()
        return next((worker for worker, name in self.names.items() if name == slot.name), None)

    def _bury(self, death: Death) -> None:
        for slot in self.slots:
            if slot.pid == death.pid:
                slot.pid = None
                if slot.sent is None:
                    self.own_ends[death.status] += 1
                    slot.start_at = max(slot.start_at, time.monotonic() + _BREATH_SECONDS)

    def _learn_names(self) -> None:
        """Read on in the log: a worker says its id when it starts."""
        with self.log.open("rb") as log:
            log.seek(self._read)
            whole, _, _ = log.read().rpartition(b"\n")
        self._read += len(whole)
        self.names |= {worker.decode(): name.decode() for worker, name in _STARTED.findall(whole)}


@dataclass(slots=True, kw_only=True)
class Backend:
    """The witness, and the outages that it is told to have."""

    log: Path
    padding: int
    latency_ms: float
    process: subprocess.Popen[str] = field(init=False)
    url: str = field(init=False)

    def __post_init__(self) -> None:
        """Start it, and wait until it listens."""
        options = ["--log", self.log, "--padding", self.padding, "--latency-ms", self.latency_ms, "--control"]
        self.process = subprocess.Popen(
            [sys.executable, str(_WITNESS), *map(str, options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self.process.stdout is None or (found := re.search(r"\d+", self.process.stdout.readline())) is None:
            raise RuntimeError("the witness does not listen")
        self.url = f"http://127.0.0.1:{found[0]}/v1"

    def tell(self, mode: str) -> None:
        """Switch to another mode of the witness."""
        if self.process.stdin is not None:
            self.process.stdin.write(f"{mode}\n")
            self.process.stdin.flush()
