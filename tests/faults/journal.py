"""What the clients were told: each acknowledged fact is on disk, outside the data directory, before the next step."""

import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Something that the API has said, or that a client was about to ask; `at` on CLOCK_MONOTONIC."""

    at: float
    kind: str
    order: str  # the batch's name on the client's side
    said: dict[str, str | int | None]


class Journal:
    """Facts as lines of JSON, each one fsynced; may be used by several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._lock = threading.Lock()

    def keep(self, kind: str, order: str, **said: str | int | None) -> None:
        """Write a fact down; when this returns, it is durable."""
        line = json.dumps({"at": time.monotonic(), "kind": kind, "order": order, "said": said})
        with self._lock:
            os.write(self._file, line.encode() + b"\n")
            os.fsync(self._file)

    def facts(self) -> Iterator[Fact]:
        """Yield every fact, the oldest first."""
        with self._path.open() as lines:
            for line in lines:
                yield Fact(**json.loads(line))
