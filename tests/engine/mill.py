"""A whole engine in one process, on a clock that a test moves: every loop is driven by its one step."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchmill.backends.backend import Backend, Call, Reply
from batchmill.backends.echo import EchoBackend
from batchmill.backends.router import Router
from batchmill.blobs.blobs import Blobs
from batchmill.blobs.disk import DiskBlobs
from batchmill.blobs.space import Boundless, Room
from batchmill.engine.feed import Feed
from batchmill.engine.finalizer import Finalizer
from batchmill.engine.group import GroupBounds
from batchmill.engine.lanes import Lane, Lanes
from batchmill.engine.lease import Lease
from batchmill.engine.loop import Bell
from batchmill.engine.roster import Roster
from batchmill.engine.runner import Runner
from batchmill.engine.scout import Scout
from batchmill.engine.sender import Sender
from batchmill.engine.sharing import Sharing
from batchmill.engine.sweeper import Sweeper
from batchmill.engine.validator import Validator
from batchmill.ledger.ledger import Ledger
from batchmill.schedule.pace import Pace
from batchmill.schedule.planner import Ordering
from batchmill.spec.ids import mint_id
from batchmill.spec.limits import OPEN, Limits
from batchmill.spec.models import NOTHING_CONFIGURED, Catalogue
from batchmill.spec.objects import BatchObject, FileObject
from batchmill.spec.states import Event, Status
from batchmill.store.batch import Batch, advance, batches_by_id, insert_batch
from batchmill.store.blob import insert_writing, publish_blob, refer
from batchmill.store.database import Database, SqliteDatabase, Transaction
from batchmill.store.file import File, find_file, insert_file
from batchmill.store.migrate import migrate
from batchmill.store.model import add_models
from batchmill.store.organisation import find_organisation, insert_organisation
from batchmill.store.roster import Entry
from batchmill.store.worker import has_live_worker, renew_leases, void_leases
from batchmill.telemetry import Metrics
from fakeclock import FakeClock, settle

LEASE = 15.0
CHAT = "/v1/chat/completions"


def line(custom_id: str, text: object = "hi", model: str = "echo", **more: object) -> bytes:
    """Return a request line as bytes; a `text` that is none makes one that the echo backend refuses."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
    value = {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def lines(count: int, model: str = "echo") -> bytes:
    """Return so many request lines, with the ids r-0, r-1 and so on."""
    return b"".join(line(f"r-{n}", f"hi {n}", model) for n in range(count))


class Watched:
    """The echo backend, with a list of the calls that it got."""

    def __init__(self, echo: EchoBackend, *, name: str = "echo:") -> None:
        self._echo = echo
        self.name = name
        self.calls: list[Call] = []
        self.open = 0
        self.most_open = 0

    async def models(self) -> tuple[str, ...]:
        """See `Backend`."""
        return await self._echo.models()

    async def gauges(self) -> None:
        """See `Backend`."""

    async def send(self, call: Call) -> Reply:
        """See `Backend`."""
        self.calls.append(call)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            return await self._echo.send(call)
        finally:
            self.open -= 1

    async def close(self) -> None:
        """See `Backend`."""


def _no_lane(entry: Entry) -> Lane:
    raise ValueError(f"nothing is at {entry.url}")


@dataclass(kw_only=True)
class Hand:
    """One worker's loops."""

    worker_id: str
    runner: Runner
    validator: Validator
    finalizer: Finalizer
    scout: Scout
    lanes: Sequence[Lane]
    sharing: Sharing
    roster: Roster
    lease: Lease
    metrics: Metrics
    router: Router
    all_lanes: Lanes

    @property
    def present(self) -> list[Lane]:
        """The lanes that there are now."""
        return list(self.all_lanes)

    @property
    def open_models(self) -> frozenset[str]:
        """The models that lines are sent for now."""
        return self.all_lanes.open_models()

    async def accept(self) -> None:
        """Ask the backends what they serve, and validate every batch that waits."""
        await self.scout.step()
        while await self.validator.step():
            pass


@dataclass(kw_only=True)
class Mill:
    """The rows, the bytes, the clock, and hands that work on them."""

    folder: Path
    database: Database
    blobs: Blobs
    clock: FakeClock
    room: Room = field(default_factory=Boundless)
    limits: Limits = OPEN
    catalogue: Catalogue = NOTHING_CONFIGURED
    _files: dict[str, str] = field(default_factory=dict)

    @classmethod
    async def build(cls, folder: Path, *, blobs: Blobs | None = None) -> "Mill":
        """Make an empty mill, on a disk unless told otherwise."""
        clock = FakeClock()
        database = SqliteDatabase(path=folder / "rows.sqlite3", clock=clock)
        await database.write(migrate)
        return cls(folder=folder, database=database, blobs=blobs or DiskBlobs(folder=folder / "blobs"), clock=clock)

    def hand(
        self,
        *backends: Backend,
        window: int = 8,
        bounds: GroupBounds | None = None,
        once: bool = False,
        retention: int | None = None,
        coalesce: bool = False,
        most: int | None = None,
        alone: bool = True,
        make_lane: Callable[[Entry], Lane] | None = None,
    ) -> Hand:
        """Build a worker's loops over these backends."""
        worker_id = mint_id("worker", self.clock.now())
        mine: dict[str, Any] = {
            "database": self.database,
            "clock": self.clock,
            "worker_id": worker_id,
            "lease": LEASE,
            "blobs": self.blobs,
        }
        given = [Lane(backend=each, pace=Pace(window=window, most=most, alone=alone)) for each in backends]
        router = Router([lane.backend for lane in given])
        lanes, feed = Lanes(lanes=given, router=router, shared=not alone), Feed()
        bell, lease, metrics = Bell(clock=self.clock), Lease(clock=self.clock, seconds=LEASE), Metrics()
        runner = Runner(
            ledger=Ledger(metrics=metrics, **mine),
            database=self.database,
            blobs=self.blobs,
            room=self.room,
            lanes=lanes,
            feed=feed,
            sender=Sender(
                clock=self.clock, draw=lambda: 0.5, once=once, unwell=bell, metrics=metrics, catalogue=self.catalogue
            ),
            lease=lease,
            clock=self.clock,
            bell=bell,
            bounds=bounds or GroupBounds(),
            metrics=metrics,
            once=once,
            coalesce=coalesce,
        )
        return Hand(
            worker_id=worker_id,
            runner=runner,
            validator=Validator(
                room=self.room,
                limits=self.limits,
                accepted=bell,
                catalogue=self.catalogue,
                ordering=Ordering(coalesce=coalesce),
                **mine,
            ),
            finalizer=Finalizer(room=self.room, retention=retention, **mine),
            scout=Scout(
                database=self.database,
                lanes=lanes,
                worker_id=worker_id,
                router=router,
                clock=self.clock,
                learned=(bell,),
                metrics=metrics,
            ),
            sharing=Sharing(
                database=self.database, lanes=lanes, pending=feed.pending, worker_id=worker_id, clock=self.clock
            ),
            roster=Roster(
                database=self.database,
                lanes=lanes,
                feed=feed,
                make_lane=make_lane or _no_lane,
                worker_id=worker_id,
                clock=self.clock,
                unknown=bell,
                metrics=metrics,
            ),
            lanes=given,
            lease=lease,
            metrics=metrics,
            router=router,
            all_lanes=lanes,
        )

    def echo(self, *, latency: float = 0.0, models: tuple[str, ...] = ("echo",), name: str = "echo:") -> Watched:
        """Return a watched echo backend; several of one worker have names of their own."""
        return Watched(EchoBackend(clock=self.clock, latency=latency, models=models), name=name)

    @property
    def sweeper(self) -> Sweeper:
        """A Sweeper that begins now."""
        return self.sweeper_of()

    def sweeper_of(self, hand: Hand | None = None, *, worker_id: str | None = None) -> Sweeper:
        """Return the Sweeper of a worker: it knows which backend serves what."""
        return Sweeper(
            database=self.database,
            blobs=self.blobs,
            room=self.room,
            router=Router([]) if hand is None else hand.router,
            clock=self.clock,
            worker_id=worker_id,
        )

    async def knows(self, *models: str) -> None:
        """Let these models be known."""
        await self.database.write(lambda tx: add_models(tx, names=models, now=1))

    async def batch(self, content: bytes, *, organisation: str = "ours", window: int = 3600, **order: Any) -> str:  # noqa: ANN401
        """Upload this content and create a batch over it; return its id."""
        now = self.clock.now()
        key, batch_id = mint_id("upload", now), mint_id("batch", now)
        self.clock.time += 1e-3  # ids sort by creation
        writer = self.blobs.writer(key)
        writer.write(content)
        written = writer.finish()

        def statements(tx: Transaction) -> None:
            owner = find_organisation(tx, name=organisation)
            if owner is None:
                owner = mint_id("org", now)
                insert_organisation(tx, organisation_id=owner, name=organisation, now=int(now))
            insert_writing(tx, key=key, organisation_id=owner, now=int(now))
            publish_blob(tx, key=key, size=written.bytes, sha256=written.sha256)
            file = FileObject(
                id=mint_id("file", now), bytes=written.bytes, created_at=int(now), filename="in.jsonl", purpose="batch"
            )
            insert_file(tx, File(organisation_id=owner, blob_key=key, object=file))
            refer(tx, key=key)
            facts = BatchObject(
                id=batch_id,
                endpoint=order.get("endpoint", CHAT),
                input_file_id=file.id,
                completion_window="1h",
                status=Status.VALIDATING,
                created_at=int(now),
                expires_at=int(now) + window,
            )
            insert_batch(
                tx,
                Batch(
                    organisation_id=owner,
                    object=facts,
                    input_key=key,
                    plan_key=None,
                    output_expires_after=order.get("output_expires_after"),
                    key_id=order.get("key_id"),
                    epoch=0,
                ),
            )

        await self.database.write(statements)
        return batch_id

    async def look(self, batch_id: str) -> Batch:
        """Return a batch as it is."""
        return (await self.database.read(lambda tx: batches_by_id(tx, batch_ids=[batch_id])))[batch_id]

    async def status(self, batch_id: str) -> Status:
        """Return a batch's status."""
        return (await self.look(batch_id)).object.status

    async def cancel(self, batch_id: str) -> None:
        """Cancel a batch, as the API does."""
        status = await self.status(batch_id)
        now = int(self.clock.now())
        await self.database.write(lambda tx: advance(tx, batch_id=batch_id, status=status, event=Event.CANCEL, now=now))

    async def results(self, batch_id: str, kind: str = "output") -> list[dict[str, Any]]:
        """Return the lines of a result file, parsed."""
        return [json.loads(text) for text in (await self.raw_results(batch_id, kind)).splitlines()]

    async def raw_results(self, batch_id: str, kind: str = "output") -> bytes:
        """Return the bytes of a result file; none where there is no such File."""
        batch = await self.look(batch_id)
        file_id = batch.object.output_file_id if kind == "output" else batch.object.error_file_id
        if file_id is None:
            return b""
        now = int(self.clock.now())
        file = await self.database.read(
            lambda tx: find_file(tx, organisation_id=batch.organisation_id, file_id=file_id, now=now)
        )
        assert file is not None
        return self.blobs.read(file.blob_key, offset=0, length=file.object.bytes)

    async def renew(self, hand: Hand) -> None:
        """Renew a worker's leases, as `Worker` does."""
        await self.database.write(lambda tx: renew_leases(tx, worker_id=hand.worker_id, lease=LEASE))
        hand.lease.renewed(self.clock.boot())

    async def turn(self, hand: Hand, *, seconds: float = 30.0) -> None:
        """Let a runner work for so long, in steps of a tenth of a second of its clock."""
        for _ in range(int(seconds * 10)):
            await hand.runner.step()
            await settle()
            await self.renew(hand)
            await self.clock.advance(0.1)

    async def die(self, hand: Hand) -> None:
        """Let a worker send what it has and die before anything is durable."""
        await hand.scout.step()
        await hand.runner.step()
        await settle()
        await self.database.write(lambda tx: void_leases(tx, worker_id="heir"))

    async def pass_time(self, seconds: float, step: float = 0.05) -> None:
        """Let the clock run while loops and threads do their work.

        The smaller the step, the more real time a second of it is.
        """
        for _ in range(round(seconds / step)):
            await self.clock.advance(step)
            await settle()
            await self.database.write(has_live_worker)  # the writer's thread is real: wait for it

    async def finish(self, hand: Hand, batch_id: str, *, seconds: float = 60.0) -> Status:
        """Validate, run and finalize until a batch is final; return its status."""
        await hand.scout.step()
        for _ in range(int(seconds * 10)):
            while await hand.validator.step():
                pass
            await hand.runner.step()
            await settle()
            while await hand.finalizer.step():
                pass
            status = await self.status(batch_id)
            if status in {Status.COMPLETED, Status.FAILED, Status.EXPIRED, Status.CANCELLED}:
                return status
            await self.renew(hand)
            await self.clock.advance(0.1)
        return await self.status(batch_id)
