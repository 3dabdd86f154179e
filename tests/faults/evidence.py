"""What a run leaves behind, and what is found in it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from openai import OpenAI

from faults.ground import Ground
from faults.input import Order
from faults.journal import Fact
from faults.nemesis import Inflicted
from faults.trail import Trail

# Once its batch has closed, or it wakes after its lease, a worker may go on sending for so long (R8, R9); and here many
# processes share few cores.
LEARN_SECONDS = 1.0 + 1.0
EXECUTED = ("ok", "slow", "drip", "400")  # answers of the witness that would cost an inference engine its work


class Send(NamedTuple):
    """A request as the witness saw it arrive: `epoch` is that of the claim it was sent under."""

    at: float
    key: str
    epoch: int
    sha256: str
    wish: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that a run has left behind."""

    ground: Ground
    padding: int
    orders: Mapping[str, Order]
    facts: Sequence[Fact]
    trail: Trail
    sends: Sequence[Send]
    inflicted: Sequence[Inflicted]
    clients: Sequence[OpenAI]


@dataclass(slots=True)
class Finding:
    """What was wrong, and the figures of what was looked at."""

    violations: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    figures: Counter[str] = field(default_factory=Counter)  # seconds are no whole numbers

    def check(self, holds: bool, invariant: str, example: object = "") -> None:
        """Count a violation of an invariant unless it holds."""
        if not holds:
            self.violations[invariant] += 1
            self.examples.setdefault(invariant, str(example)[:400])


def read_sends(log: Path) -> list[Send]:
    """Return the witness' log."""
    found = []
    for line in log.read_text().splitlines():
        word, key, request_id, sha256, at, wish = line.split()
        if word == "start":
            epoch = int(request_id.rpartition("_")[2].partition("a")[0])
            found.append(Send(at=float(at), key=key, epoch=epoch, sha256=sha256, wish=wish))
    return found


class Record(NamedTuple):
    """When a line was first recorded, and under which claim."""

    at: float
    epoch: int
