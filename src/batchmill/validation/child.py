"""Runs one blocking function in a process of its own, which never outlives its parent."""

import asyncio
import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, TypeVar

T = TypeVar("T")

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_LARGE = 128 << 10  # bytes
_HERE = 8 << 20  # bytes: larger inputs are checked in a process of their own, off this one's event loop and memory


class ChildDied(Exception):  # noqa: N818 - it states what happened
    """The process ended without an answer."""


async def run_beside(call: Callable[[], T], *, size: int) -> T:
    """Run a picklable, blocking call over an input of so many bytes: in a thread, or in a process of its own.

    Raises:
        ChildDied: that process was killed.
    """
    return await (run_in_child(call) if size > _HERE else asyncio.to_thread(call))


async def run_in_child(call: Callable[[], T]) -> T:
    """Run a picklable call in a fresh process and return what it returns; its exceptions are raised here.

    Raises:
        ChildDied: it was killed.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_main, args=(call, sender), daemon=True)
    starting = asyncio.ensure_future(asyncio.to_thread(process.start))
    try:
        await asyncio.shield(starting)
        sender.close()
        answer: Callable[[], T] | BaseException = await asyncio.to_thread(_receive, receiver)
    finally:
        await asyncio.wait([starting])  # a thread cannot be given up
        if process.pid is not None:
            process.kill()  # it has answered, died, or nobody waits for it any more
            await asyncio.to_thread(process.join)
        receiver.close()
    if isinstance(answer, BaseException):
        raise answer
    return answer()  # a value comes wrapped, so that it cannot be mistaken for an exception


def _receive(receiver: "Connection[Any, Any]") -> Any:  # noqa: ANN401 - what `_main` sent
    try:
        return receiver.recv()
    except EOFError:
        return ChildDied("a child process died before it answered")


def _main(call: Callable[[], object], sender: "Connection[Any, Any]") -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the parent, who ends this
    _give_large_buffers_back()
    try:
        answer: object = partial(_itself, call())
    except BaseException as fault:  # noqa: BLE001 - raised again in the parent
        answer = fault
    sender.send(answer)


def _give_large_buffers_back() -> None:
    """Let glibc hand each large buffer back to the system: a third of a piece's memory was holes between such."""
    with suppress(AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)


def _itself(value: T) -> T:
    return value


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
