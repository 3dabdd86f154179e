"""Blocking work in a process of its own."""

import os
import signal
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
