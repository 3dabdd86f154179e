import asyncio
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from batchmill.blobs.disk import DiskBlobs
from batchmill.schedule.scale import Left, Scale
from batchmill.settings import Settings
from batchmill.spec.states import FINAL, Status
from batchmill.store.postgres import PostgresDatabase
from engine.mill import Mill, lines
from fakeclock import FakeClock
from postgres import cluster_of

ray = pytest.importorskip("ray", reason=f"NOT RUN: there is no Ray for Python {sys.version.split()[0]} here")
from batchmill.cli.fleet import FleetLook, FleetWork  # noqa: E402 - it needs Ray
from batchmill.fleet.ray import Fleet, NoCluster, Order, Seen, connect, worker_names  # noqa: E402 - the same
from fleet.works import NotedLook, NotedWork  # noqa: E402 - the same

# Alone: a cluster of eleven processes takes the machine.
pytestmark = [pytest.mark.usefixtures("nodes"), pytest.mark.alone]

_NUMBERS = count()
_SECONDS = 30.0


@dataclass(kw_only=True)
class Watched:
    """A fleet of noted work in a namespace of its own."""

    namespace: str
    folder: Path
    order: Order
    fleet: Fleet

    def leave(self, lines: int) -> None:
        """Let so many lines be open."""
        new = self.folder / "new"
        new.write_text(str(lines))
        new.rename(self.folder / "lines")

    def notes(self) -> dict[int, str]:
        """Return what each process of work has written last."""
        return {int(path.name[4:]): path.read_text() for path in self.folder.glob("pid-*")}

    def working(self) -> set[int]:
        """Return the processes that work: those killed, or ended by a fault, left a note, too."""
        return {pid for pid, note in self.notes().items() if note == "on" and Path(f"/proc/{pid}").exists()}

    async def until(self, condition: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever the condition returns
        """Return what the condition returns as soon as that is true."""
        async with asyncio.timeout(_SECONDS):
            while not (found := condition()):  # noqa: ASYNC110 - other processes ring no bell
                await asyncio.sleep(0.05)
        return found

    async def until_working(self, workers: int) -> set[int]:
        """Return the processes as soon as there are so many of them, and no actor more."""

        def are_there() -> set[int] | None:
            working = self.working()
            return working if len(working) == len(worker_names(self.namespace)) == workers else None

        found: set[int] = await self.until(are_there)
        return found

    async def until_seen(self, condition: Callable[[Seen], bool]) -> Seen:
        """Return what the scaler saw as soon as that is as it should be."""
        async with asyncio.timeout(_SECONDS):
            while (seen := await self.fleet.seen()) is None or not condition(seen):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.05)
        return seen


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    """A fleet of one to four workers, a hundred lines each, that lets go after half a second."""
    namespace = f"fleet-{next(_NUMBERS)}"
    order = Order(
        work=NotedWork(folder=tmp_path),
        look=NotedLook(folder=tmp_path),
        scale=Scale(least=1, most=4, lines=100, patience=0.5),
        cpus=1.0,
        gpus=0.0,
        grace=5.0,
        every=0.1,
    )
    watched = Watched(namespace=namespace, folder=tmp_path, order=order, fleet=Fleet(namespace=namespace))
    watched.leave(0)
    yield watched
    (tmp_path / "deaf").unlink(missing_ok=True)
    await watched.fleet.end(grace=1.0)


async def test_a_fleet_follows_its_backlog(watched: Watched) -> None:
    """It has a worker for each hundred lines; when fewer do, the others drain; when nobody knows, nothing changes."""
    await watched.fleet.follow(watched.order)
    first = await watched.until_working(1)
    watched.leave(350)
    all_four = await watched.until_working(4)
    assert first < all_four
    watched.leave(150)
    left = await watched.until_working(2)
    assert sorted(watched.notes().values()) == ["drained", "drained", "on", "on"]
    assert first < left < all_four
    (watched.folder / "lines").write_text("away")
    await watched.until_seen(lambda seen: seen.left is None)
    await asyncio.sleep(1.0)  # twice the patience
    assert watched.working() == left


async def test_who_is_killed_is_started_again(watched: Watched) -> None:
    """Ray starts a worker anew, under its name, and the scaler, which finds the workers by their names and goes on."""
    watched.leave(250)
    await watched.fleet.follow(watched.order)
    before = await watched.until_working(3)
    names = worker_names(watched.namespace)
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    ray.kill(ray.get_actor("batchmill-scaler", watched.namespace), no_restart=False)
    after = await watched.until(lambda: watched.working() - before and watched.working())
    assert len(after) == 3
    assert before - after == {victim}
    assert worker_names(watched.namespace) == names
    watched.leave(350)
    assert after < await watched.until_working(4)


async def test_a_worker_that_fails_is_started_again(watched: Watched) -> None:
    """A fault ends the worker's process, after a pause where it came at once, and a new one takes its place."""
    (watched.folder / "fault").touch()
    await watched.fleet.follow(watched.order)
    await watched.until(lambda: len(watched.notes()) == 2)
    (second,) = await watched.until_working(1)
    assert second == max(watched.notes(), key=lambda pid: (watched.folder / f"pid-{pid}").stat().st_mtime)


async def test_a_worker_that_does_not_drain_is_let_go(watched: Watched) -> None:
    """After its grace the actor ends with the worker in it: the leases of that one lapse."""
    (watched.folder / "deaf").touch()
    watched.leave(150)
    watched.order = replace(watched.order, grace=0.5)
    await watched.fleet.follow(watched.order)
    await watched.until_working(2)
    watched.leave(0)
    await watched.until_working(1)
    assert "drained" not in watched.notes().values()


async def test_the_workers_of_a_lost_node_go_elsewhere(nodes: Any, watched: Watched) -> None:  # noqa: ANN401 - Ray's own
    """When the processes of a node are killed, its workers are started on a node that has places for them."""
    node = nodes.add_node(num_cpus=4, node_ip_address="127.0.0.1")
    watched.leave(350)
    await watched.fleet.follow(watched.order)
    before = await watched.until_working(4)  # Ray fills half of a node before it takes another
    nodes.remove_node(node, allow_graceful=False)
    after = await watched.until(
        lambda: watched.working() - before and len(watched.working()) == 4 and watched.working()
    )
    assert 0 < len(before & after) < 4


_DRIVER = """
import asyncio, os, sys, pickle
from batchmill.fleet.ray import Fleet, connect
assert not connect(sys.argv[1])
async def main():
    await Fleet(namespace=sys.argv[2]).follow(pickle.load(open(sys.argv[3], "rb")))
    print("following", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_a_fleet_outlives_its_driver(nodes: Any, watched: Watched) -> None:  # noqa: ANN401 - Ray's own
    """A killed driver takes nobody along, scaling goes on without it, and another driver comes back to the fleet."""
    (watched.folder / "order").write_bytes(pickle.dumps(watched.order))
    watched.leave(150)
    command = [sys.executable, "-c", _DRIVER, nodes.address, watched.namespace, str(watched.folder / "order")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as driver:  # noqa: ASYNC220 - the loop has nothing else to do
        working = await watched.until_working(2)
        driver.kill()
    watched.leave(250)
    assert working < (three := await watched.until_working(3))  # nobody drives it
    watched.order = replace(watched.order, scale=replace(watched.order.scale, most=2))
    await watched.fleet.follow(watched.order)
    assert await watched.until_working(2) < three
    await watched.fleet.end(grace=5.0)
    assert worker_names(watched.namespace) == []
    assert await watched.fleet.seen() is None
    assert set(watched.notes().values()) == {"drained"}


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "ray://127.0.0.1:1"])
def test_an_address_without_a_cluster_is_told_at_once(address: str) -> None:
    """Nobody waits for minutes, as Ray itself does."""
    with pytest.raises(NoCluster, match=f"There is no Ray cluster at {address}"):
        connect(address)


def test_who_listens_at_an_address_may_be_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster of our own is started in place of one that was named: it would have other nodes, and end with us."""
    asked: list[str] = []

    def refuse(address: str, **_: object) -> None:  # as Ray does after a minute
        asked.append(address)
        raise ConnectionError("no GCS there")

    monkeypatch.setattr(ray, "init", refuse)
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(NoCluster, match=f"There is no Ray cluster at {address}: no GCS there"):
            connect(address)
    assert asked == [address]


def _process_of(name: str) -> int | None:
    """Return the process of an actor; None while it has none."""
    for actor in ray._private.state.actors().values():  # its public way needs the dashboard
        if (actor["Name"], actor["State"]) == (name, "ALIVE"):
            return int(actor["Pid"])
    return None


@pytest.mark.timeout(90)
async def test_a_batch_outlives_the_actors_that_work_on_it(
    nodes: Any,  # noqa: ANN401 - Ray's own
    watched: Watched,
    request: pytest.FixtureRequest,
) -> None:
    """Real workers are killed in the middle of a batch: each line stands once in the output, no secret in a log."""
    url = (await cluster_of(request.config).new_database()).replace("batchmill@", "batchmill:secret-of-the-rows@")
    data = watched.folder / "data"
    settings = Settings(
        data=data,
        database=url,
        allow_unsafe_database=True,
        backend="echo:?latency_ms=50",
        window=12,
        lease="2s",
        drain="2s",
    )
    work = FleetWork(settings=settings.model_dump_json(), environment={"PGAPPNAME": "secret-of-the-environment"})
    database = PostgresDatabase(url=url)
    clock = FakeClock(now=time.time())
    mill = Mill(folder=watched.folder, database=database, blobs=DiskBlobs(folder=data / "blobs"), clock=clock)
    batch_id = await mill.batch(lines(500))
    look = FleetLook(work=work)
    assert await look() == Left(lines=0, batches=1)
    await watched.fleet.follow(
        replace(watched.order, work=work, look=look, scale=replace(watched.order.scale, least=3))
    )
    killed: set[int] = set()
    while (batch := (await mill.look(batch_id)).object).status not in FINAL:
        for name in worker_names(watched.namespace):
            pid = _process_of(name)
            if len(killed) < 2 and batch.counts.completed > 150 * len(killed) and pid is not None:
                killed.add(pid)
                os.kill(pid, signal.SIGKILL)
                break
        await asyncio.sleep(0.1)
    assert batch.status == Status.COMPLETED
    assert len(killed) == 2
    assert [result["custom_id"] for result in await mill.results(batch_id)] == [f"r-{n}" for n in range(500)]
    assert await look() == Left(lines=0, batches=0)
    await watched.fleet.end(grace=5.0)
    await database.close()
    logs = [path for path in nodes.folder.rglob("*") if path.is_file() and "logs" in path.parts]
    assert any(b"worker started" in path.read_bytes() for path in logs)
    assert [path for path in logs if b"secret-of-the-" in path.read_bytes()] == []
