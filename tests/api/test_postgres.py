"""The API over PostgreSQL: several processes at once, a server that is away, commits whose answers are lost."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from api.served import LINE, Answer, file_part, form, text_part
from batchmill.api.app import create_app
from batchmill.api.gate import App, Message
from batchmill.assemble.api import build_api
from batchmill.assemble.storage import Storage
from batchmill.blobs.disk import DiskBlobs
from batchmill.blobs.space import Boundless
from batchmill.cli.keys import make_key
from batchmill.settings import Settings
from batchmill.spec.limits import KIMI, Limits
from batchmill.spec.objects import Usage
from batchmill.spec.usage import Used, day_of
from batchmill.store.audit import missing_blobs, wrong_refs, wrong_sizes
from batchmill.store.database import Transaction
from batchmill.store.organisation import Allowance, find_organisation, list_keys, save_allowance
from batchmill.store.postgres import PostgresDatabase
from batchmill.store.tables import api_key, batch, blob, file
from batchmill.store.usage import Whose, count_usage
from fakeclock import FakeClock
from faults.deaf import Deaf
from postgres import Cluster, cluster

__all__ = ["cluster"]


class Process:
    """An API process, and how a test talks to it: within this event loop."""

    def __init__(self, url: str, folder: Path, *, patience: float = 10.0, limits: Limits = KIMI) -> None:
        self.database = PostgresDatabase(url=url, patience=patience)
        self.clock = FakeClock()
        self.app: App = create_app(
            database=self.database,
            blobs=DiskBlobs(folder=folder),
            room=Boundless(),
            clock=self.clock,
            limits=limits,
            version="0.0.1",
            broken=lambda: None,
        )
        self.key = ""

    async def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        """Ask, with the key."""
        headers = {"authorization": f"Bearer {self.key}", "content-length": str(len(body))} | headers
        sent: list[Message] = []
        bodies = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Message:
            for message in bodies:
                return message
            await asyncio.Event().wait()  # the client stays
            raise AssertionError

        async def send(message: Message) -> None:
            sent.append(message)

        scope: Message = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 1),
            "http_version": "1.1",
            "scheme": "http",
            "server": ("127.0.0.1", 1),
            "root_path": "",
        }
        await self.app(scope, receive, send)
        head = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return Answer(status=sent[0]["status"], headers=head, body=b"".join(m.get("body", b"") for m in sent[1:]))

    async def upload(self, **headers: str) -> Answer:
        """Upload one line."""
        kind, body = form(text_part("purpose", "batch"), file_part(LINE))
        return await self.ask("POST", "/v1/files", body, content_type=kind, **headers)

    async def create(self, file_id: str, **headers: str) -> Answer:
        """Create a batch."""
        order = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        return await self.ask("POST", "/v1/batches", json.dumps(order).encode(), **headers)


Start = Callable[..., Awaitable[Process]]


@pytest.fixture
async def url(cluster: Cluster) -> AsyncIterator[str]:
    """A database with all tables."""
    given = await cluster.new_database()
    yield given
    await cluster.give_back(given)


@pytest.fixture
async def start(url: str, tmp_path: Path) -> AsyncIterator[Start]:
    """Start processes over one database and one disk; all ask with one organisation's key."""
    keys: list[str] = []
    started: list[Process] = []

    async def begin(at: str = url, **settings: Any) -> Process:  # noqa: ANN401 - those of Process
        process = Process(at, tmp_path / "blobs", **settings)
        started.append(process)
        if not keys:
            keys.append((await process.database.write(lambda tx: make_key(tx, org="ours", now=1.0))).key)
        process.key = keys[0]
        return process

    yield begin
    for process in started:
        await process.database.close()


@asynccontextmanager
async def deaf_to(cluster: Cluster) -> AsyncIterator[Deaf]:
    """Put a proxy that loses COMMITs before the server."""
    proxy = await Deaf(port=cluster.port).start()
    try:
        yield proxy
    finally:
        await proxy.stop()


def all_ids(tx: Transaction) -> tuple[list[str], list[str]]:
    """Return the Files and the batches that there are."""
    return tuple(list(tx.connection.execute(select(t.c.id)).scalars()) for t in (file, batch))  # type: ignore[return-value]


async def test_no_answer_is_lost_or_doubled_where_every_commits_is(start: Start, url: str, cluster: Cluster) -> None:
    """Upload, create, cancel and delete, with an Idempotency-Key or none, are done once though no COMMIT is heard."""
    async with deaf_to(cluster) as proxy:
        process = await start()
        through = await start(proxy.url(url))
        proxy.lose_every(1)
        first, second = await through.upload(), await through.upload(idempotency_key="u1")
        made = await through.create(first.json["id"], idempotency_key="b1")
        again = await through.create(first.json["id"], idempotency_key="b1")
        cancelled = await through.ask("POST", f"/v1/batches/{made.json['id']}/cancel")
        deleted = await through.ask("DELETE", f"/v1/files/{second.json['id']}")
        assert [a.status for a in (first, second, made, again, cancelled, deleted)] == [200] * 6
        assert again.body == made.body
        assert proxy.lost == proxy.commits >= 8
        await through.database.close()
    assert await process.database.read(all_ids) == ([first.json["id"]], [made.json["id"]])
    assert cancelled.json["status"] == "cancelling"
    for check in (wrong_refs, missing_blobs, wrong_sizes):
        assert await process.database.read(check) == []


async def test_a_database_that_is_away_is_a_503(start: Start, cluster: Cluster) -> None:
    """Every route asks for a later retry, nothing is a 500, and all is as before once it is back."""
    process = await start(patience=0.2)
    made = (await process.upload()).json["id"]
    cluster.halt()
    try:
        answers = [
            await process.ask("GET", "/v1/files"),
            await process.ask("GET", f"/v1/files/{made}/content"),
            await process.ask("DELETE", f"/v1/files/{made}"),
            await process.ask("POST", "/v1/batches/batch_1/cancel"),
            await process.ask("GET", "/v1/models"),
            await process.upload(),
            await process.create(made),
        ]
        ready = await process.ask("GET", "/readyz")
        assert (await process.ask("GET", "/healthz")).status == 200
    finally:
        cluster.start()
    for answer in answers:
        assert answer.error == (503, "server_unavailable", None, "unavailable")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert ready.json["checks"]["database"] == {"ready": False, "reason": "the database does not answer"}
    assert (await process.create(made)).status == 200


async def test_a_quota_holds_between_processes(start: Start, url: str, cluster: Cluster) -> None:
    """Of two uploads at once, by two processes, where one more file is allowed, one is refused."""
    one, other = await start(), await start()

    def allow(tx: Transaction) -> None:
        organisation_id = find_organisation(tx, name="ours")
        assert organisation_id is not None
        save_allowance(tx, organisation_id=organisation_id, allowance=Allowance(max_files=1))

    await one.database.write(allow)
    # Both are held where they publish, the last thing that an upload does.
    lock = "LOCK TABLE file IN EXCLUSIVE MODE; SELECT * FROM organisation FOR NO KEY UPDATE"
    answers = await cluster.behind(url, lock, one.upload(), other.upload())
    assert sorted(answer.status for answer in answers if isinstance(answer, Answer)) == [200, 400]


async def test_keys_at_once_are_no_more_than_are_allowed(start: Start, url: str, cluster: Cluster) -> None:
    """Of two that are made at once, by two processes, where one more may be good, one is refused."""
    settings = {"limits": replace(KIMI, max_keys=2)}
    one, other = await start(**settings), await start(**settings)
    every = {"scopes": "read write admin"}
    await one.database.write(lambda tx: tx.connection.execute(api_key.update().values(every)))
    lock = "SELECT * FROM organisation FOR NO KEY UPDATE"
    answers = await cluster.behind(url, lock, one.ask("POST", "/v1/keys"), other.ask("POST", "/v1/keys"))
    assert sorted(answer.status for answer in answers if isinstance(answer, Answer)) == [200, 400]
    assert len(await one.database.read(list_keys)) == 2


async def test_a_budget_holds_for_all_processes(start: Start) -> None:
    """What a day has left is asked of the rows: once it is used up every process refuses, and names the numbers."""
    one, other = await start(), await start()
    made = (await one.upload()).json["id"]

    def use_up(tx: Transaction) -> None:
        organisation_id = find_organisation(tx, name="ours")
        assert organisation_id is not None
        save_allowance(tx, organisation_id=organisation_id, allowance=Allowance(tokens_per_day=10))
        used = Used(requests=1, tokens=Usage(input_tokens=10))
        count_usage(tx, {Whose(organisation_id, "", "m"): used}, day=day_of(one.clock.now()))

    assert (await one.create(made)).status == 200
    await other.database.write(use_up)
    answers = await asyncio.gather(one.create(made), other.create(made))
    for answer in answers:
        assert answer.error == (429, "rate_limit_reached_error", None, "token_limit_exceeded")
        assert "used 10 tokens today, of 10" in answer.json["error"]["message"]


@pytest.mark.parametrize("headers", [{"idempotency_key": "k"}, {"x_stainless_retry_count": "1"}], ids=["key", "retry"])
async def test_a_call_that_is_sent_twice_at_once_makes_one(
    start: Start, url: str, cluster: Cluster, headers: dict[str, str]
) -> None:
    """A create and its repetition, at two processes at the same moment, get one answer and make one batch."""
    one, other = await start(), await start()
    made = (await one.upload()).json["id"]
    first = {} if "x_stainless_retry_count" in headers else headers
    lock = "LOCK TABLE batch IN EXCLUSIVE MODE"
    answers = await cluster.behind(url, lock, one.create(made, **first), other.create(made, **headers))
    assert [answer.status for answer in answers if isinstance(answer, Answer)] == [200, 200]
    assert len({answer.body for answer in answers if isinstance(answer, Answer)}) == 1
    assert len((await one.database.read(all_ids))[1]) == 1


async def test_a_file_that_is_deleted_while_a_batch_is_created_stays_for_it(
    start: Start, url: str, cluster: Cluster
) -> None:
    """Whichever comes first: the batch is refused, or it holds the bytes that the deletion leaves to it."""
    one, other = await start(), await start()
    for _ in range(4):
        made = (await one.upload()).json["id"]
        lock = "SELECT * FROM blob FOR UPDATE"
        answers = await cluster.behind(url, lock, one.create(made), other.ask("DELETE", f"/v1/files/{made}"))
        created, deleted = (answer for answer in answers if isinstance(answer, Answer))
        assert (created.status, deleted.status) in {(200, 200), (404, 200), (400, 200)}
        assert await one.database.read(wrong_refs) == []
        assert await one.database.read(missing_blobs) == []


async def test_of_two_deletes_one_finds_the_file(start: Start, url: str, cluster: Cluster) -> None:
    """Its reference is dropped once."""
    one, other = await start(), await start()
    made = (await one.upload()).json["id"]
    calls = [process.ask("DELETE", f"/v1/files/{made}") for process in (one, other)]
    answers = await cluster.behind(url, "SELECT * FROM file FOR UPDATE", *calls)
    assert sorted(answer.status for answer in answers if isinstance(answer, Answer)) == [200, 404]
    states = await one.database.read(lambda tx: list(tx.connection.execute(select(blob.c.state, blob.c.refs))))
    assert [tuple(state) for state in states] == [("doomed", 0)]


async def test_two_that_make_the_same_organisation_make_one(url: str, cluster: Cluster) -> None:
    """Two keys made at once for an organisation that is not there yet belong to the same one."""
    databases = [PostgresDatabase(url=url) for _ in range(2)]
    calls = [database.write(lambda tx: make_key(tx, org="default", now=1.0)) for database in databases]
    await cluster.behind(url, "LOCK TABLE organisation IN EXCLUSIVE MODE", *calls)
    keys = await databases[0].read(list_keys)
    assert (len(keys), len({key.organisation_id for key in keys})) == (2, 1)
    for database in databases:
        await database.close()


async def test_processes_share_an_organisations_rate(start: Start, url: str, tmp_path: Path) -> None:
    """Put together as `serve` does: three calls a minute are three in all, and each answer tells the rest."""

    def limit(tx: Transaction) -> None:
        organisation_id = find_organisation(tx, name="ours")
        assert organisation_id is not None
        save_allowance(tx, organisation_id=organisation_id, allowance=Allowance(requests_per_minute=3))

    processes, clock = [await start(), await start()], FakeClock()
    await processes[0].database.write(limit)
    settings = Settings(database=url, data=tmp_path)
    storages = [Storage(settings=settings, clock=clock) for _ in processes]
    for process, storage in zip(processes, storages, strict=True):
        process.app = build_api(settings=settings, storage=storage, clock=clock, broken=lambda: None)
    answers = [await processes[call % 2].ask("GET", "/v1/files") for call in range(4)]
    for storage in storages:
        await storage.database.close()
    told = [(one.status, one.headers["x-ratelimit-limit"], one.headers["x-ratelimit-remaining"]) for one in answers]
    assert told == [(200, "3", "2"), (200, "3", "1"), (200, "3", "0"), (429, "3", "0")]
    assert 10 <= int(answers[3].headers["retry-after"]) <= 20
    assert 50 <= int(answers[3].headers["x-ratelimit-reset"]) <= 60
