"""Workers as Ray actors: Ray places them and starts them again, a scaler follows the backlog, the rows stay the truth.

A fleet is a namespace of Ray with named, detached actors in it: `batchmill-scaler`, `batchmill-worker-1`, `-2`, ….
The names are all that is known of it, and Ray keeps them: the command that starts it may end, another come back to it,
and the scaler die and be started again, and no worker notices. A worker that Ray starts again is a new worker to the
Store: what the old one held is fenced by leases and epochs, so nothing that Ray repeats can double a result.

Orders go to actors as arguments, never as an environment of Ray's: that one is written to its logs.
"""

import asyncio
import os
import socket
import threading
import time
from asyncio import AbstractEventLoop
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
import structlog
from ray.exceptions import RayError

from batchmill.schedule.scale import Left, Lull, Scale, wanted_workers

_SCALER = "batchmill-scaler"
_WORKER = "batchmill-worker-"
_SHORT_LIFE = 5.0  # seconds: a worker that failed sooner is started again only after as many more
_POLL_SECONDS = 0.2
_CONNECT_SECONDS = 5.0
_GRACE_BESIDE = 10.0  # seconds that a drain may take beside the grace of its worker


class Work(Protocol):
    """A worker, to be made wherever this is unpickled; what it names is imported there."""

    def loop(self) -> AbstractEventLoop:
        """Return a new event loop of the kind that the worker needs."""

    def run(self, stopping: asyncio.Event) -> Coroutine[object, object, None]:
        """Work until `stopping` is set, then drain and return; a fault is raised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a fleet is to be. `look` asks the Store what is left; both it and `work` are pickled and sent to actors.

    `cpus` and `gpus` are what each worker occupies; `grace` is for how many seconds one may drain; `every` is how
    often the backlog is looked at, in seconds.
    """

    work: Work = field(repr=False)
    look: Callable[[], Awaitable[Left]] = field(repr=False)
    scale: Scale
    cpus: float
    gpus: float
    grace: float
    every: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the scaler saw last: its workers that are not ending, those that are, how many it wants, what is left."""

    workers: int = 0
    draining: int = 0
    wanted: int = 0
    left: Left | None = None


class WorkerActor:
    """One worker, on an event loop and a thread of its own, so that Ray's loop stays free to hear `drain`."""

    def __init__(self, work: Work, grace: float) -> None:
        self._grace = grace
        self._loop = work.loop()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._live, args=(work,), name="worker", daemon=True)
        self._thread.start()

    async def drain(self) -> None:
        """Let the worker end, and then this actor, for good: not even Ray starts it again."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        await asyncio.to_thread(self._thread.join, self._grace)
        exit_actor: Callable[[], None] = ray.actor.exit_actor
        exit_actor()

    def _live(self, work: Work) -> None:
        """Work; whoever ends without being told to ends the process, and Ray starts the next one."""
        began = time.monotonic()
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(work.run(self._stopping))
        except BaseException:  # noqa: BLE001 - whatever it is, this process is of no more use
            structlog.get_logger("fleet").exception("the worker failed")
        if not self._stopping.is_set():
            time.sleep(_SHORT_LIFE if time.monotonic() - began < _SHORT_LIFE else 0.0)
            os._exit(1)


class ScalerActor:
    """Looks at the backlog and starts and drains workers; it keeps nothing that cannot be lost."""

    def __init__(self, order: Order, namespace: str) -> None:
        self._order = order
        self._namespace = namespace
        self._draining: dict[str, asyncio.Task[None]] = {}
        self._lull: Lull | None = None
        self._seen = Seen()
        self._log = structlog.get_logger("fleet")
        self._scaling = asyncio.create_task(self._scale_for_ever())

    async def seen(self) -> Seen:
        """Return what it saw last."""
        return self._seen

    async def _scale_for_ever(self) -> None:
        while True:
            try:
                await self._scale()
            except Exception:  # noqa: BLE001 - Ray's trouble, whatever it is: the next look may find it well
                self._log.exception("could not scale")
            await asyncio.sleep(self._order.every)

    async def _scale(self) -> None:
        left = await self._left()
        names = worker_names(self._namespace)
        staying = [name for name in names if name not in self._draining]
        wanted = wanted_workers(
            self._order.scale, left=left, running=len(staying), lull=self._lull, now=time.monotonic()
        )
        self._lull = wanted.lull
        free = (name for n in range(1, len(names) + wanted.workers + 1) if (name := f"{_WORKER}{n}") not in names)
        for _ in range(wanted.workers - len(staying)):
            self._start(next(free))
        for name in staying[wanted.workers :]:
            self._draining[name] = asyncio.create_task(self._drain(name))
        self._seen = Seen(workers=len(staying), draining=len(names) - len(staying), wanted=wanted.workers, left=left)

    async def _left(self) -> Left | None:
        try:
            return await self._order.look()
        except Exception as fault:  # noqa: BLE001 - a database that is away, in any of its ways: nothing changes
            self._log.warning("the backlog is not known", reason=type(fault).__name__)  # its text may hold the URL
            return None

    def _start(self, name: str) -> None:
        """Ask Ray for a worker; it waits for a place, if need be, and Ray's autoscaler sees that."""
        order = self._order
        _detached(WorkerActor, name, self._namespace, num_cpus=order.cpus, num_gpus=order.gpus).remote(
            order.work, order.grace
        )

    async def _drain(self, name: str) -> None:
        try:
            await _end(name, self._namespace, self._order.grace)
        finally:
            del self._draining[name]


class NoCluster(Exception):  # noqa: N818 - it states what is so
    """There is no Ray cluster at that address; the text says so in a sentence."""


def connect(address: str | None) -> bool:
    """Join a cluster: that of the address, of RAY_ADDRESS, or one of this machine.

    Returns:
        Whether there is none, so that this process has started one, which ends with it.

    Raises:
        NoCluster: nobody listens at the address, or no cluster does.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing of this goes to Ray's makers
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
    if address != "auto":
        host, _, port = address.removeprefix("ray://").rpartition(":")
        try:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
        except (OSError, ValueError) as fault:
            raise NoCluster(f"There is no Ray cluster at {address}: {fault}.") from fault
    try:
        ray.init(address=address, **quiet)
    except ConnectionError as fault:
        if address != "auto":  # somebody else listens there: a cluster of our own is not what was asked for
            raise NoCluster(f"There is no Ray cluster at {address}: {fault}.") from fault
        ray.init(address="local", include_dashboard=False, **quiet)
        return True
    return False


class Fleet:
    """A fleet as the command sees it that starts it, or comes back to it; Ray is to be initialised."""

    def __init__(self, *, namespace: str) -> None:
        self._namespace = namespace

    async def follow(self, order: Order) -> None:
        """Give the fleet a new scaler; workers that are there stay, and new ones are made as `order` says."""
        await self._end_scaler()
        _detached(ScalerActor, _SCALER, self._namespace, num_cpus=0).remote(order, self._namespace)

    async def seen(self) -> Seen | None:
        """Return what the scaler saw last; None while Ray starts it."""
        try:
            seen: Seen = await _named(_SCALER, self._namespace).seen.remote()
        except (RayError, ValueError):
            return None
        return seen

    async def end(self, *, grace: float) -> None:
        """Drain every worker, each for at most `grace` seconds, and leave nothing of the fleet."""
        await self._end_scaler()
        await asyncio.gather(*(_end(name, self._namespace, grace) for name in worker_names(self._namespace)))

    async def _end_scaler(self) -> None:
        with suppress(ValueError):  # there is none, or none any more
            while True:
                ray.kill(ray.get_actor(_SCALER, self._namespace), no_restart=True)
                await asyncio.sleep(_POLL_SECONDS)


def worker_names(namespace: str) -> list[str]:
    """Return the names of a fleet's workers, those that wait for a place as well, in the order of their numbers."""
    named = ray.util.list_named_actors(all_namespaces=True)
    names = [actor["name"] for actor in named if actor["namespace"] == namespace]
    return sorted((name for name in names if name.startswith(_WORKER)), key=lambda name: int(name[len(_WORKER) :]))


async def _end(name: str, namespace: str, grace: float) -> None:
    """Drain a worker until it is gone; one that Ray starts again meanwhile, too, and one that has no place yet."""
    with suppress(ValueError):  # it is gone
        while True:
            actor = _named(name, namespace)
            try:
                await asyncio.wait_for(actor.drain.remote(), timeout=grace + _GRACE_BESIDE)
            except TimeoutError:
                ray.kill(actor, no_restart=True)  # leases fence what it leaves
            except RayError:  # it has ended, which is how a drain returns, or died
                pass
            await asyncio.sleep(_POLL_SECONDS)


def _named(name: str, namespace: str) -> Any:  # noqa: ANN401 - Ray's handles have no methods for the type checker
    """Return the handle of an actor; a ValueError says that there is none."""
    return ray.get_actor(name, namespace)


def _detached(actor: type, name: str, namespace: str, **resources: float) -> Any:  # noqa: ANN401 - as above
    """Return what makes an actor that outlives whoever made it, and that Ray starts again wherever there is a place."""
    return ray.remote(actor).options(name=name, namespace=namespace, lifetime="detached", max_restarts=-1, **resources)
