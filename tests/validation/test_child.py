"""Blocking work in a process of its own."""

import asyncio
import multiprocessing
import os
import signal
import time
from functools import partial

import pytest

from batchmill.validation.child import ChildDied, run_in_child


async def test_a_child_returns_what_the_call_returns() -> None:
    """The value comes back over the pipe, large ones too, and from another process."""
    assert await run_in_child(os.getpid) != os.getpid()
    assert len(await run_in_child(partial(bytes, 5_000_000))) == 5_000_000


async def test_a_childs_exception_is_raised_here() -> None:
    """What the call raises is raised in the parent."""
    with pytest.raises(ValueError, match="invalid literal"):
        await run_in_child(partial(int, "x"))


async def test_a_killed_child_is_told() -> None:
    """A child that dies without an answer is a ChildDied."""
    with pytest.raises(ChildDied):
        await run_in_child(partial(signal.raise_signal, signal.SIGKILL))


@pytest.mark.parametrize("seconds", [0.0, 0.001, 1.0])
async def test_a_child_that_nobody_waits_for_ends(seconds: float) -> None:
    """Also if its caller gives up while it is being started: it would read a whole input for nobody."""
    waiting = asyncio.ensure_future(run_in_child(partial(time.sleep, 3600)))
    await asyncio.wait([waiting], timeout=seconds)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert multiprocessing.active_children() == []
