"""Which end of a child is worth a new start, and which ends the whole."""

import asyncio
import subprocess
import sys

import pytest

from batchmill.backends.builtin import EXIT_CANNOT
from batchmill.cli.exit import Exit, Stop
from batchmill.cli.supervisor import Child, Supervisor

_BEGIN = "import os, sys; os.write(int(sys.stdin.readline()), b'.'); "


class Starts:
    """Counts the waits between two starts, which take no time, and stops after so many."""

    def __init__(self, most: int) -> None:
        """Set it up."""
        self.waits, self.stop, self._most = list[float](), asyncio.Event(), most

    async def sleep(self, seconds: float) -> None:
        """Take no time."""
        self.waits.append(seconds)
        if len(self.waits) == self._most:
            self.stop.set()


async def supervised(program: str, starts: Starts) -> None:
    """Keep a Python program alive until it is stopped."""
    supervisor = Supervisor(sleep=starts.sleep)
    child = Child(
        name="child",
        command=[sys.executable, "-S", "-c", program],
        order=lambda heartbeat: f"{heartbeat}\n".encode(),
        descriptors=[],
        silence=10.0,
        grace=1.0,
        verdict=Exit.NO_BUILTIN_MODEL,
    )
    supervisor.keep(child)
    try:
        await supervisor.watch(starts.stop)
    finally:
        await supervisor.stop(("child",), asyncio.Event())


async def test_a_child_that_says_that_it_never_will_ends_the_whole() -> None:
    """It is not started again; the exit code of the whole is that of the child's kind."""
    starts = Starts(1)
    with pytest.raises(Stop, match="The child process cannot work here") as stop:
        await supervised(f"raise SystemExit({EXIT_CANNOT})", starts)
    assert (starts.waits, stop.value.code) == ([], Exit.NO_BUILTIN_MODEL)


async def test_a_child_that_never_begins_ends_the_whole() -> None:
    """Ended by itself before its first heartbeat, it is started again more and more slowly, and at last no more."""
    starts = Starts(100)
    with pytest.raises(Stop, match="The child process ended 8 times before it could begin"):
        await supervised("raise SystemExit(1)", starts)
    assert starts.waits == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


@pytest.mark.parametrize(
    "program",
    [_BEGIN + "raise SystemExit(1)", "import os; os.kill(os.getpid(), 9)"],
    ids=["has begun", "is killed"],
)
async def test_any_other_is_started_again(program: str) -> None:
    """However often it ends: what has begun goes on, and one that is killed may find memory the next time."""
    starts = Starts(10)
    await supervised(program, starts)
    assert len(starts.waits) == 10


@pytest.mark.parametrize(
    ("order", "member"),
    [
        (b"what?\n", "the line: Invalid JSON"),
        (b'{"role": "api", "settings": {"database": 5, "prot": "s3cret"}}\n', "settings.database: "),
    ],
)
def test_an_order_that_cannot_be_read_is_one_sentence(order: bytes, member: str) -> None:
    """As after an upgrade of a running `serve`: what is wrong with it, without its values, and no new start."""
    command = [sys.executable, "-m", "batchmill.cli.process", "api"]
    ended = subprocess.run(command, input=order, capture_output=True, timeout=60, check=False)
    said = ended.stderr.decode()
    assert ended.returncode == EXIT_CANNOT
    assert said.startswith(f"The order cannot be read ({member}")
    assert said.count("\n") == 1
    assert "s3cret" not in said
