"""The operations whose every crash point is tried: what a bare process does, and what must be so after its death.

All of it is the real code on a real database and disk. Only threads are missing: strace counts the calls of each
thread by itself, so `OneThread` runs the executors' calls in line, and the k-th call of the process is the k-th call.
"""

import asyncio
import hashlib
import json
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import select, text

from api.served import LINE, file_part, form, text_part
from batchmill.api.app import create_app
from batchmill.blobs.disk import DiskBlobs
from batchmill.ledger.ledger import Claim, Ledger, Portion
from batchmill.ledger.segment import Result
from batchmill.spec.ids import key_digest, mint_key
from batchmill.spec.limits import OPEN
from batchmill.spec.states import FINAL, Status
from batchmill.store import migrations
from batchmill.store.database import SqliteDatabase, Transaction
from batchmill.store.migrate import migrate
from batchmill.store.organisation import find_organisation, insert_key, insert_organisation
from batchmill.store.tables import batch, metadata
from batchmill.store.worker import insert_worker, void_leases
from batchmill.telemetry import Metrics
from engine.mill import LEASE, Mill, lines
from fakeclock import FakeClock
from faults.sound import check_clean, check_sound

T = TypeVar("T")
Facts = dict[str, Any]  # what an operation acknowledged, or what its template holds; JSON

KEY = mint_key()  # one for all processes: they are forked from one
LINES = 600  # three Slices: 256, 256 and 88
_INPUT = lines(LINES)
_UPLOAD = LINE * 16_000  # more than two of the writer's buffers
_DECADE = 10**8.5  # seconds; no window closes by itself
_SEASON = 4_200_000  # bytes: more than SQLite lets its log grow before it begins it anew


class OneThread(asyncio.SelectorEventLoop):
    """An event loop without threads."""

    def run_in_executor(self, _executor: object, func: Callable[..., Any], *args: object) -> Any:  # noqa: ANN401 - the base's
        """Run the call at once."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as fault:  # noqa: BLE001 - raised where it is awaited
            future.set_exception(fault)
        return future


def run_alone(call: Coroutine[Any, Any, T]) -> T:
    """Run to the end in this thread alone."""
    with asyncio.Runner(loop_factory=OneThread) as runner:
        return runner.run(call)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One thing that the API or the engine does.

    `prepare` fills an empty store and says what `act` needs; `act` does it, and what it returns is the acknowledgement;
    `rest` is what follows by itself afterwards. `check` looks after the crash, and does it again; it is given what was
    acknowledged, or None. `seasoned`: the log of the database has been begun anew already, as on any server that has
    run for a while, so that commits overwrite it in place and change no size.
    """

    prepare: Callable[[Mill], Awaitable[Facts]]
    act: Callable[[Mill, Facts], Awaitable[Facts]]
    check: Callable[[Mill, Facts, Facts | None], Awaitable[None]]
    rest: Callable[[Mill], Awaitable[object]] | None = None
    seasoned: bool = False
    migrates: bool = False  # the tables are there only afterwards


async def open_store(folder: Path) -> Mill:
    """Open the store of a folder, as it is."""
    clock = FakeClock()
    database = SqliteDatabase(path=folder / "rows.sqlite3", clock=clock)
    return Mill(
        folder=folder,
        database=database,
        blobs=DiskBlobs(folder=folder / "blobs", fsync=os.fsync),
        clock=clock,
        limits=OPEN,
    )


async def season(mill: Mill) -> None:
    """Write until the log has been begun anew."""
    fill = text("INSERT INTO backend (name, well, since, reason) VALUES ('season', 1, 0, :reason)")
    await mill.database.write(lambda tx: tx.connection.execute(fill, {"reason": "x" * _SEASON}))
    await mill.database.write(lambda tx: tx.connection.execute(text("DELETE FROM backend WHERE name = 'season'")))
    await mill.database.write(lambda tx: tx.connection.execute(text("DELETE FROM backend")))


async def recover(folder: Path, operation: Operation, facts: Facts, acknowledged: Facts | None) -> None:
    """Open the store as the next worker does, and raise AssertionError unless all is as it must be."""
    mill = await open_store(folder)
    if not operation.migrates:
        await mill.database.write(_begin)  # first the product opens it: a log that was cut off needs a writer
        check_sound(mill)
    await operation.check(mill, facts, acknowledged)
    check_sound(mill)
    await mill.database.write(_void)  # what the checks have claimed ends as at a death
    await _finish_batches(mill)
    mill.clock.time += 2 * 3600  # the janitor's period is over
    sweeper = mill.sweeper
    mill.clock.uptime += 2 * 3600
    for _ in range(4):
        await sweeper.step()
    check_sound(mill)
    check_clean(mill)
    await mill.database.close()


def _begin(tx: Transaction) -> None:
    insert_worker(tx, worker_id="w-after", lease=LEASE, now=0)
    void_leases(tx, worker_id="w-after")


async def _finish_batches(mill: Mill) -> None:
    """Bring every batch to its end: each line of its input stands once, in one of its files."""
    hand = mill.hand(mill.echo(), window=256)
    for batch_id in await mill.database.read(lambda tx: tx.connection.execute(select(batch.c.id)).scalars().all()):
        assert await mill.finish(hand, batch_id) in FINAL
        await _check_batch(mill, batch_id)


async def _check_batch(mill: Mill, batch_id: str) -> None:
    found = {kind: await mill.results(batch_id, kind) for kind in ("output", "error")}
    counts = (await mill.look(batch_id)).object.counts
    if counts.total == 0:  # cancelled before it was validated
        return
    assert (len(found["output"]), len(found["error"])) == (counts.completed, counts.failed)
    times = Counter(line["custom_id"] for lines_ in found.values() for line in lines_)
    assert times == Counter(f"r-{n}" for n in range(counts.total)), "a line is lost, doubled or invented"


async def call(
    mill: Mill, method: str, path: str, body: bytes = b"", content_type: str = "application/json"
) -> tuple[int, bytes]:
    """Ask the API, in this process; return the status and the body of its answer."""
    app = create_app(
        database=mill.database,
        blobs=mill.blobs,
        room=mill.room,
        clock=mill.clock,
        limits=mill.limits,
        version="0",
        broken=lambda: None,
    )
    asked = [{"type": "http.request", "body": body}]
    answered: list[Mapping[str, Any]] = []

    async def receive() -> Mapping[str, Any]:
        return asked.pop() if asked else await asyncio.get_running_loop().create_future()  # the client stays

    async def send(message: Mapping[str, Any]) -> None:
        answered.append(message)

    headers = [(b"authorization", f"Bearer {KEY}".encode()), (b"content-type", content_type.encode())]
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "root_path": ""}
    scope |= {"method": method, "path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers}
    await app(scope, receive, send)  # type: ignore[arg-type] - the server's own kinds are wider
    return answered[0]["status"], b"".join(message.get("body", b"") for message in answered[1:])


async def ask(mill: Mill, method: str, path: str, body: bytes = b"", content_type: str = "application/json") -> Facts:
    """Ask the API and return its JSON; anything but a 200 is no acknowledgement.

    Raises:
        NotAcknowledged: the answer is another.
    """
    status, answer = await call(mill, method, path, body, content_type)
    if status != 200:
        raise NotAcknowledged(status)
    return dict(json.loads(answer))


class NotAcknowledged(Exception):  # noqa: N818 - it states what happened
    """The API answered an error: the status."""


# What the templates hold.


async def _empty(_mill: Mill) -> Facts:
    return {}


async def _tenant(mill: Mill) -> Facts:
    def statements(tx: Transaction) -> None:
        insert_organisation(tx, organisation_id="org_1", name="ours", now=1)
        insert_key(tx, key_id="key_1", organisation_id="org_1", digest=key_digest(KEY), now=1)

    await mill.database.write(migrate)
    await mill.database.write(statements)
    await mill.knows("echo")
    return {}


async def _uploaded(mill: Mill) -> Facts:
    await _tenant(mill)
    return {"file": await _upload(mill, _INPUT)}


async def _running(mill: Mill) -> Facts:
    """A batch of three Slices, one of them recorded, one recorded in part."""
    await _tenant(mill)
    batch_id = await mill.batch(_INPUT, window=int(_DECADE))
    assert await mill.hand(mill.echo()).validator.step()
    ledger, (first, second, third) = await _claimed(mill)
    await ledger.commit([_portion(first, "before"), _portion(second, "before", lines=100)])
    await ledger.release([second.slice, third.slice])
    return {"batch": batch_id}


async def _drained(mill: Mill) -> Facts:
    """A batch of three Slices, all recorded, with good and bad Results."""
    await _tenant(mill)
    batch_id = await mill.batch(_INPUT, window=int(_DECADE))
    assert await mill.hand(mill.echo()).validator.step()
    ledger, claims = await _claimed(mill)
    for claimed in claims:
        await ledger.commit([_portion(claimed, "before")])
    assert await mill.status(batch_id) is Status.FINALIZING
    return {"batch": batch_id}


async def _old(mill: Mill) -> Facts:
    """The tables of the first revision, with rows."""
    await mill.database.write(_first_tables)
    await mill.database.write(lambda tx: insert_organisation(tx, organisation_id="org_1", name="ours", now=1))
    return {}


def _first_tables(tx: Transaction) -> None:
    """Migrate to the first revision only, as a Batchmill of that day did."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.set_main_option("path_separator", "os")
    script = ScriptDirectory.from_config(config)
    with EnvironmentContext(config, script) as environment:
        environment.configure(
            connection=tx.connection,
            target_metadata=metadata,
            fn=lambda revision, _context: script._upgrade_revs("0001", revision),  # alembic's own commands do so
            transactional_ddl=True,
        )
        environment.run_migrations()


# What is done.


async def _upload(mill: Mill, content: bytes = _UPLOAD) -> Facts:
    content_type, body = form(text_part("purpose", "batch"), file_part(content))
    facts = await ask(mill, "POST", "/v1/files", body, content_type)
    return {"id": facts["id"], "bytes": facts["bytes"], "sha256": hashlib.sha256(content).hexdigest()}


async def _act_upload(mill: Mill, _facts: Facts) -> Facts:
    return await _upload(mill)


async def _act_create(mill: Mill, facts: Facts) -> Facts:
    order = {"input_file_id": facts["file"]["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return await ask(mill, "POST", "/v1/batches", json.dumps({**order, "metadata": {"a": "b"}}).encode())


async def _act_cancel(mill: Mill, facts: Facts) -> Facts:
    return await ask(mill, "POST", f"/v1/batches/{facts['batch']}/cancel")


async def _act_delete(mill: Mill, facts: Facts) -> Facts:
    return await ask(mill, "DELETE", f"/v1/files/{facts['file']['id']}")


async def _act_record(mill: Mill, _facts: Facts) -> Facts:
    """A claim, and a group commit of two Slices: the rest of one, and a part of the other."""
    ledger, (second, third) = await _claimed(mill)
    fallen = await ledger.commit([_portion(second, "act"), _portion(third, "act", lines=50)])
    assert not fallen
    return {}


async def _act_finalize(mill: Mill, _facts: Facts) -> Facts:
    assert await mill.hand(mill.echo()).finalizer.step()
    return {}


async def _act_start(mill: Mill, _facts: Facts) -> Facts:
    await _tenant(mill)
    return {}


async def _act_migrate(mill: Mill, _facts: Facts) -> Facts:
    await mill.database.write(migrate)
    return {}


async def _claimed(mill: Mill) -> tuple[Ledger, list[Claim]]:
    ledger = Ledger(
        database=mill.database,
        blobs=mill.blobs,
        clock=mill.clock,
        worker_id="w-before",
        lease=LEASE,
        metrics=Metrics(),
    )
    return ledger, await ledger.claim(slices=9, models=["echo"])


def _portion(claimed: Claim, by: str, *, lines: int | None = None) -> Portion:
    """Return Results for the first open lines of a Slice, or for all of them; every seventh line has failed."""
    held = claimed.slice
    done = int.from_bytes(held.done, "little")
    indexes = [index for index in range(held.lines) if not done >> index & 1][:lines]
    bits = done | sum(1 << index for index in indexes)
    return Portion(
        slice=held,
        results=[_result(index, held.first + index, by) for index in indexes],
        done=bits.to_bytes(len(held.done), "little"),
        closed=bits == (1 << held.lines) - 1,
    )


def _result(index: int, number: int, by: str) -> Result:
    line = json.dumps({"custom_id": f"r-{number}", "by": by, "filling": "x" * 200}).encode() + b"\n"
    return Result(index=index, succeeded=number % 7 != 0, attempts=1, text=line)


# What must be so afterwards.


async def _check_upload(mill: Mill, facts: Facts, acknowledged: Facts | None) -> None:
    page = await ask(mill, "GET", "/v1/files")
    assert len(page["data"]) in ((1,) if acknowledged else (0, 1))
    for shown in page["data"]:
        await _check_file(mill, acknowledged or await _same_upload(shown))
    assert await _act_upload(mill, facts)


async def _same_upload(shown: Facts) -> Facts:
    return {"id": shown["id"], "bytes": len(_UPLOAD), "sha256": hashlib.sha256(_UPLOAD).hexdigest()}


async def _check_file(mill: Mill, promised: Facts) -> None:
    assert (await ask(mill, "GET", f"/v1/files/{promised['id']}"))["bytes"] == promised["bytes"]
    status, content = await call(mill, "GET", f"/v1/files/{promised['id']}/content")
    assert (status, hashlib.sha256(content).hexdigest()) == (200, promised["sha256"])


async def _check_create(mill: Mill, facts: Facts, acknowledged: Facts | None) -> None:
    if acknowledged:
        found = await ask(mill, "GET", f"/v1/batches/{acknowledged['id']}")
        assert found == acknowledged
    page = await ask(mill, "GET", "/v1/batches")
    assert len(page["data"]) in ((1,) if acknowledged else (0, 1))
    await _check_file(mill, facts["file"])
    assert await _act_create(mill, facts)


async def _check_cancel(mill: Mill, facts: Facts, acknowledged: Facts | None) -> None:
    expected = {Status.CANCELLING} if acknowledged else {Status.IN_PROGRESS, Status.CANCELLING}
    assert await mill.status(facts["batch"]) in expected
    assert (await _act_cancel(mill, facts))["status"] == "cancelling"
    assert await mill.finish(mill.hand(mill.echo()), facts["batch"]) is Status.CANCELLED
    await _check_recorded(mill, facts, "before", 356)


async def _check_delete(mill: Mill, facts: Facts, acknowledged: Facts | None) -> None:
    status, _ = await call(mill, "GET", f"/v1/files/{facts['file']['id']}")
    assert status in ((404,) if acknowledged else (200, 404))
    if status == 200:
        await _check_file(mill, facts["file"])
        assert await _act_delete(mill, facts)
    status, _ = await call(mill, "DELETE", f"/v1/files/{facts['file']['id']}")
    assert status == 404


async def _check_record(mill: Mill, facts: Facts, acknowledged: Facts | None) -> None:
    counts = (await mill.look(facts["batch"])).object.counts
    done = counts.completed + counts.failed
    assert done in ((562,) if acknowledged else (356, 562)), "half of a group is recorded"
    if done == 356:
        await _act_record(mill, facts)
        await mill.database.write(_void)
    assert await mill.finish(mill.hand(mill.echo(), window=256), facts["batch"]) is Status.COMPLETED
    await _check_recorded(mill, facts, "before", 356)
    await _check_recorded(mill, facts, "act", 206)


def _void(tx: Transaction) -> None:
    void_leases(tx, worker_id="w-after")


async def _check_finalize(mill: Mill, facts: Facts, acknowledged: Facts | None) -> None:
    status = await mill.status(facts["batch"])
    assert status in ({Status.COMPLETED} if acknowledged else {Status.FINALIZING, Status.COMPLETED})
    if status is Status.FINALIZING:
        await _act_finalize(mill, facts)
    await _check_recorded(mill, facts, "before", LINES)


async def _check_recorded(mill: Mill, facts: Facts, by: str, count: int) -> None:
    """All lines that were recorded before are in the files, as they were recorded: none was run again."""
    kept = [line for kind in ("output", "error") for line in await mill.results(facts["batch"], kind)]
    assert sum(line.get("by") == by for line in kept) == count, "a recorded result is gone, or was made again"


async def _check_start(mill: Mill, _facts: Facts, acknowledged: Facts | None) -> None:
    await mill.database.write(migrate)
    there = await mill.database.read(lambda tx: find_organisation(tx, name="ours"))
    assert there == "org_1" if acknowledged else there in ("org_1", None)
    if there is None:
        await _tenant(mill)
    assert await _upload(mill, _INPUT)


async def _check_migrate(mill: Mill, _facts: Facts, acknowledged: Facts | None) -> None:
    revision = text("SELECT version_num FROM alembic_version")
    before = await mill.database.read(lambda tx: tx.connection.execute(revision).scalar_one())
    assert before != "0001" or not acknowledged
    await mill.database.write(migrate)
    assert await mill.database.read(lambda tx: find_organisation(tx, name="ours")) == "org_1"
    await mill.batch(_INPUT, window=int(_DECADE))
    await mill.knows("echo")


OPERATIONS = {
    "upload": Operation(prepare=_tenant, act=_act_upload, check=_check_upload, seasoned=True),
    "create": Operation(prepare=_uploaded, act=_act_create, check=_check_create),
    "cancel": Operation(prepare=_running, act=_act_cancel, check=_check_cancel),
    "delete": Operation(
        prepare=_uploaded, act=_act_delete, check=_check_delete, rest=lambda m: m.sweeper.step(), seasoned=True
    ),
    "record": Operation(prepare=_running, act=_act_record, check=_check_record, seasoned=True),
    "finalize": Operation(prepare=_drained, act=_act_finalize, check=_check_finalize, seasoned=True),
    "start": Operation(prepare=_empty, act=_act_start, check=_check_start, migrates=True),
    "migrate": Operation(prepare=_old, act=_act_migrate, check=_check_migrate, migrates=True),
}
