"""Calls that are sent again after their answer was lost: each makes what it asks for once."""

import asyncio
import hashlib
import random
import socket
import threading
from collections.abc import Callable, MutableMapping
from dataclasses import replace
from typing import Any

import openai
import pytest
from sqlalchemy import select
from starlette.requests import ClientDisconnect, Request

from api.proxy import proxy
from api.served import LINE, Answer, Served, Tenant, file_part, form, text_part
from batchmill.api.replay import Replays
from batchmill.spec.ids import key_digest, mint_id
from batchmill.spec.limits import KIMI
from batchmill.store.batch import list_batches
from batchmill.store.replay import Call, insert_running
from batchmill.store.tables import replay
from engine.faulty import FaultyDatabase

ENDPOINT = "/v1/chat/completions"
BATCH = text_part("purpose", "batch")
KEY = "my-key-1"
CREATES, UPLOADS = 100, 25

LOSSES: dict[str, Callable[[int], bool]] = {
    "none": lambda _: False,
    "every first": lambda retries: retries == 0,
    "every first and second": lambda retries: retries <= 1,
}


def order(file_id: str, **members: object) -> dict[str, object]:
    """Return the JSON of a create."""
    return {"input_file_id": file_id, "completion_window": "24h", **members}


def create(tenant: Tenant, file_id: str, *, retries: int | None = None, key: str | None = None) -> Answer:
    """Create a batch as the `retries`th try, or with an Idempotency-Key."""
    body = f'{{"input_file_id": "{file_id}", "completion_window": "24h"}}'.encode()
    return tenant.call("POST", "/v1/batches", body, **marks(retries, key))


def upload(tenant: Tenant, content: bytes = LINE, *, retries: int | None = None, key: str | None = None) -> Answer:
    """Upload a file as the `retries`th try, or with an Idempotency-Key."""
    content_type, body = form(BATCH, file_part(content))
    headers = {"Authorization": f"Bearer {tenant.key}", "Content_Type": content_type}
    return tenant.served.ask("POST", "/v1/files", body, **headers, **marks(retries, key))


def marks(retries: int | None, key: str | None) -> dict[str, str]:
    """Return the headers that say so."""
    counted = {} if retries is None else {"x_stainless_retry_count": str(retries)}
    return counted if key is None else {**counted, "Idempotency_Key": key}


def batches(tenant: Tenant) -> int:
    """Return how many batches the organisation has."""
    return len(tenant.served.rows(lambda tx: list_batches(tx, organisation_id=tenant.id, after=None, limit=10_000)))


def files(tenant: Tenant) -> int:
    """Return how many Files it has."""
    return len(tenant.call("GET", "/v1/files").json["data"])


def check_replay(again: Answer, first: Answer) -> None:
    """Assert that an answer is the first one, byte for byte, and says so."""
    assert "x-idempotent-replay" not in first.headers
    assert (again.status, again.body) == (first.status, first.body)
    assert again.headers["x-idempotent-replay"] == "true"


def check_new(answer: Answer) -> None:
    """Assert that an answer is the first to what it made."""
    assert answer.status == 200, answer.body
    assert "x-idempotent-replay" not in answer.headers


# ---- the untouched client, whose answers are lost on the way


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("identical", [True, False], ids=["identical", "different"])
async def test_the_clients_own_retries_make_each_batch_once(tenant: Tenant, loss: str, *, identical: bool) -> None:
    """N creates at once make N batches, and each is told to one caller, whichever of the answers are lost."""
    file_id = (await asyncio.to_thread(tenant.upload))["id"]
    async with proxy(tenant.served.port, LOSSES[loss]) as url, tenant.async_openai() as client:
        lossy = client.with_options(base_url=f"{url}/v1")
        made = await asyncio.gather(
            *(
                lossy.batches.create(
                    input_file_id=file_id,
                    endpoint=ENDPOINT,
                    completion_window="24h",
                    metadata=None if identical else {"n": str(n)},
                )
                for n in range(CREATES)
            )
        )
    there = await asyncio.to_thread(batches, tenant)
    print(f"creates: n = {CREATES}, batches = {there}")  # noqa: T201 - the figure
    assert there == CREATES
    assert len({batch.id for batch in made}) == CREATES
    if not identical:
        assert [batch.metadata for batch in made] == [{"n": str(n)} for n in range(CREATES)]


@pytest.mark.parametrize("seed", range(3))
async def test_answers_lost_at_random_make_no_batch_too_many(tenant: Tenant, seed: int) -> None:
    """N identical creates make N batches, whatever the order in which their tries come and answers are lost."""
    file_id, dice = (await asyncio.to_thread(tenant.upload))["id"], random.Random(seed)  # noqa: S311 - no secret

    def loses(retries: int) -> bool:
        return retries < 2 and dice.random() < 0.5

    async with proxy(tenant.served.port, loses) as url, tenant.async_openai() as client:
        create_one = client.with_options(base_url=f"{url}/v1").batches.create
        calls = (create_one(input_file_id=file_id, endpoint=ENDPOINT, completion_window="24h") for _ in range(CREATES))
        await asyncio.gather(*calls)
    there = await asyncio.to_thread(batches, tenant)
    print(f"creates: n = {CREATES}, batches = {there}")  # noqa: T201 - the figure
    assert there == CREATES


@pytest.mark.parametrize("identical", [True, False], ids=["identical", "different"])
async def test_the_clients_own_retries_make_each_file_once(serve: Callable[..., Served], *, identical: bool) -> None:
    """N uploads whose first answers are lost make N Files; the bytes of each second try are given up."""
    limits = replace(KIMI, max_uploads_per_key=UPLOADS)
    tenant = await asyncio.to_thread(lambda: serve(limits=limits).tenant())
    async with proxy(tenant.served.port, LOSSES["every first"]) as url, tenant.async_openai() as client:
        lossy = client.with_options(base_url=f"{url}/v1")
        contents = [LINE * (1 if identical else 1 + n) for n in range(UPLOADS)]
        made = await asyncio.gather(
            *(lossy.files.create(file=("a.jsonl", content), purpose="batch") for content in contents)
        )
    there = await asyncio.to_thread(files, tenant)
    print(f"uploads: n = {UPLOADS}, files = {there}")  # noqa: T201 - the figure
    assert there == len({file.id for file in made}) == UPLOADS
    assert [file.bytes for file in made] == [len(content) for content in contents]
    blobs = await asyncio.to_thread(tenant.blobs)
    assert sorted(state for state, _ in blobs.values()) == ["doomed"] * UPLOADS + ["ready"] * UPLOADS


@pytest.mark.parametrize("served", ["sqlite+disk"], indirect=True)  # its loop, its file or its full disk
async def test_a_client_that_times_out_makes_one_batch(tenant: Tenant) -> None:
    """While a transaction is held up the client gives up twice; its third try makes the one batch there is."""
    file_id, free = (await asyncio.to_thread(tenant.upload))["id"], threading.Event()
    holding = asyncio.create_task(tenant.served.database.write(lambda _: None, before=free.wait))

    def comes(retries: int) -> None:
        if retries == 2:
            free.set()

    async with proxy(tenant.served.port, LOSSES["none"], comes) as url, tenant.async_openai() as client:
        impatient = client.with_options(base_url=f"{url}/v1", timeout=2.0)
        made = await impatient.batches.create(input_file_id=file_id, endpoint=ENDPOINT, completion_window="24h")
    await holding
    listed = await asyncio.to_thread(tenant.call, "GET", "/v1/batches")
    assert [batch["id"] for batch in listed.json["data"]] == [made.id]


@pytest.mark.parametrize("served", ["sqlite+disk"], indirect=True)  # its loop, its file or its full disk
async def test_a_call_whose_client_has_gone_makes_nothing(tenant: Tenant) -> None:
    """Nobody could hear of it, and the next try would make the same."""
    served = tenant.served
    replays = Replays(database=served.database, clock=served.clock, limits=KIMI)

    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    def make(_tx: object) -> Any:  # noqa: ANN401 - it never returns
        raise AssertionError("it was made")

    call = Call(
        id=mint_id("replay", 1), organisation_id=tenant.id, caller="c", route="batches", key_digest=None, retries=0
    )
    with pytest.raises(ClientDisconnect):
        await replays.once(Request({"type": "http"}, receive), call=call, fingerprint="f", make=make)


# ---- without a key


@pytest.mark.parametrize("retries", [None, 0], ids=["unmarked", "first try"])
def test_separate_calls_are_separate(tenant: Tenant, retries: int | None) -> None:
    """Two identical calls that are no retries make two batches, and two Files."""
    file_id = upload(tenant, retries=retries).json["id"]
    assert upload(tenant, retries=retries).json["id"] != file_id
    first, second = create(tenant, file_id, retries=retries), create(tenant, file_id, retries=retries)
    check_new(first)
    check_new(second)
    assert first.json["id"] != second.json["id"]


def test_a_retry_gets_the_first_answer(tenant: Tenant) -> None:
    """A first and a second retry, of a create and of an upload, get the first answer byte for byte."""
    first = upload(tenant, retries=0)
    file_id = first.json["id"]
    check_replay(upload(tenant, retries=1), first)
    check_replay(upload(tenant, retries=2), first)
    batch = create(tenant, file_id, retries=0)
    tenant.served.clock.time += 10
    check_replay(create(tenant, file_id, retries=1), batch)
    check_replay(create(tenant, file_id, retries=2), batch)
    assert (files(tenant), batches(tenant)) == (1, 1)


def test_a_retry_whose_first_try_never_came_makes_it(tenant: Tenant) -> None:
    """It is then the first, and the next retry gets its answer."""
    file_id = tenant.upload()["id"]
    first = create(tenant, file_id, retries=1)
    check_new(first)
    check_replay(create(tenant, file_id, retries=2), first)


def test_a_retry_that_asks_for_something_else_is_another_call(tenant: Tenant) -> None:
    """Another body, another content, and the call of another organisation are no repetition."""
    first = upload(tenant, retries=0).json["id"]
    check_new(upload(tenant, LINE * 2, retries=1))
    create(tenant, first, retries=0)
    other = tenant.call("POST", "/v1/batches", b"[]", x_stainless_retry_count="1")
    assert other.error == (400, "invalid_request_error", None, "invalid_type")
    check_new(tenant.send_json(order(first, metadata={"a": "b"})))
    stranger = tenant.served.tenant()
    check_new(upload(stranger, retries=1))


def test_members_in_another_order_are_the_same_call(tenant: Tenant) -> None:
    """A create is compared as JSON, an upload without the boundary of its form."""
    file_id = tenant.upload()["id"]
    first = tenant.send_json(order(file_id))
    turned = f'{{"completion_window":"24h","input_file_id":"{file_id}"}}'.encode()
    check_replay(tenant.call("POST", "/v1/batches", turned, x_stainless_retry_count="1"), first)


@pytest.mark.parametrize(
    ("method", "below"), [("GET", ""), ("POST", "/cancel"), ("POST", "/pause"), ("POST", "/resume")]
)
def test_a_batch_that_its_client_knows_is_never_replayed(tenant: Tenant, method: str, below: str) -> None:
    """After a retrieve, a cancel or a pause, a retry is another client's, and makes a batch of its own."""
    file_id = tenant.upload()["id"]
    first = create(tenant, file_id, retries=0)
    assert tenant.call(method, f"/v1/batches/{first.json['id']}{below}").status == 200
    check_new(create(tenant, file_id, retries=1))
    assert batches(tenant) == 2


@pytest.mark.parametrize(
    "use",
    [
        lambda t, name: t.call("GET", f"/v1/files/{name}"),
        lambda t, name: t.call("GET", f"/v1/files/{name}/content"),
        lambda t, name: t.call("DELETE", f"/v1/files/{name}"),
        lambda t, name: t.send_json(order(name)),
    ],
    ids=["retrieve", "content", "delete", "create"],
)
def test_a_file_that_its_client_knows_is_never_replayed(tenant: Tenant, use: Callable[[Tenant, str], Answer]) -> None:
    """After any use of its id, a retry makes a File of its own."""
    first = upload(tenant, retries=0)
    assert use(tenant, first.json["id"]).status == 200
    again = upload(tenant, retries=1)
    check_new(again)
    assert again.json["id"] != first.json["id"]


def test_a_list_says_nothing_of_what_has_arrived(tenant: Tenant) -> None:
    """Lists show what others made, too: a retry after one still gets its answer."""
    first = upload(tenant, retries=0)
    assert files(tenant) == 1
    check_replay(upload(tenant, retries=1), first)


def test_a_retry_comes_within_fifteen_minutes(tenant: Tenant) -> None:
    """The time counts from when the answer was last given; after it a retry is a call of its own."""
    first = upload(tenant, retries=0)
    tenant.served.clock.time += 899
    check_replay(upload(tenant, retries=1), first)
    tenant.served.clock.time += 899
    check_replay(upload(tenant, retries=2), first)
    tenant.served.clock.time += 900
    check_new(upload(tenant, retries=3))


def test_a_retry_needs_no_quota(serve: Callable[..., Served]) -> None:
    """What is there already is answered with, although there is no room for another."""
    tenant = serve(limits=replace(KIMI, max_files=1)).tenant()
    first = upload(tenant, retries=0)
    assert upload(tenant, retries=0).status == 400
    check_replay(upload(tenant, retries=1), first)


@pytest.mark.parametrize("count", ["-1", "one", "", "99999999999999999999", "١"])
def test_a_count_that_is_none_is_no_retry(tenant: Tenant, count: str) -> None:
    """A header that is no small number is as none."""
    file_id = tenant.upload()["id"]
    create(tenant, file_id, retries=0)
    body = f'{{"input_file_id": "{file_id}", "completion_window": "24h"}}'.encode()
    headers = {"x_stainless_retry_count": count.encode().decode("latin-1")}
    check_new(tenant.call("POST", "/v1/batches", body, **headers))


# ---- with a key


def test_a_key_gets_the_first_answer(tenant: Tenant) -> None:
    """The same key and call get the first answer byte for byte, used or not; each route has keys of its own."""
    first = upload(tenant, key=KEY)
    file_id = first.json["id"]
    batch = create(tenant, file_id, key=KEY)
    check_new(batch)
    tenant.call("POST", f"/v1/batches/{batch.json['id']}/cancel")
    tenant.served.clock.time += 86_399
    check_replay(upload(tenant, key=KEY), first)
    check_replay(create(tenant, file_id, key=KEY, retries=1), batch)
    assert (files(tenant), batches(tenant)) == (1, 1)
    assert sorted(state for state, _ in tenant.blobs().values()) == ["doomed", "ready"]


def test_a_key_lasts_a_day(tenant: Tenant) -> None:
    """After 24 hours the key is as new."""
    first = upload(tenant, key=KEY)
    tenant.served.clock.time += 86_400
    again = upload(tenant, LINE * 2, key=KEY)
    check_new(again)
    assert again.json["id"] != first.json["id"]
    check_replay(upload(tenant, LINE * 2, key=KEY), again)


def test_a_key_of_another_call_is_a_409(tenant: Tenant) -> None:
    """Another body, or another file, is refused, and the client is told not to try again; nothing is made."""
    file_id = upload(tenant, key=KEY).json["id"]
    create(tenant, file_id, key=KEY)
    for answer in (upload(tenant, LINE * 2, key=KEY), create(tenant, tenant.upload()["id"], key=KEY)):
        assert answer.error == (409, "conflict_error", None, "idempotency_conflict")
        assert answer.headers["x-should-retry"] == "false"
        assert "retry-after" not in answer.headers
    assert (files(tenant), batches(tenant)) == (2, 1)


def test_the_client_passes_a_key_and_is_told_of_a_conflict(tenant: Tenant) -> None:
    """With `extra_headers` the official client gets one File for one key, and a ConflictError for another file."""
    with tenant.openai() as client:
        key = {"Idempotency-Key": KEY}
        made = [client.files.create(file=("a.jsonl", LINE), purpose="batch", extra_headers=key) for _ in range(2)]
        with pytest.raises(openai.ConflictError) as refused:
            client.files.create(file=("b.jsonl", LINE), purpose="batch", extra_headers=key)
    assert made[0] == made[1]
    assert refused.value.type == "conflict_error"
    assert files(tenant) == 1


def test_the_same_key_of_another_organisation_is_another(tenant: Tenant, other: Tenant) -> None:
    """Keys do not meet across organisations, whatever is asked for."""
    check_new(upload(tenant, key=KEY))
    check_new(upload(other, key=KEY))
    check_new(create(other, other.upload()["id"], key=KEY))
    check_new(create(tenant, tenant.upload()["id"], key=KEY))


def test_a_failure_is_never_kept(tenant: Tenant) -> None:
    """After a 400 the key is free: the call that is mended goes through."""
    assert upload(tenant, b"", key=KEY).status == 400
    file_id = upload(tenant, key=KEY).json["id"]
    assert create(tenant, "file_none", key=KEY).status == 400
    assert create(tenant, "file_none", key=KEY).status == 400
    check_new(create(tenant, file_id, key=KEY))


@pytest.mark.parametrize("key", ["", "k" * 256, "k" * 10_000, "a b", "\xe9", "a\tb"])
@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches"])
def test_a_bad_key_is_a_400(tenant: Tenant, path: str, key: str) -> None:
    """A key has 1 to 255 visible ASCII characters; nothing is read or written for another."""
    answer = tenant.call("POST", path, b"{", Idempotency_Key=key)
    assert answer.error == (400, "invalid_request_error", "Idempotency-Key", "invalid_value")
    assert tenant.blobs() == {}


def test_the_longest_key_is_taken(tenant: Tenant) -> None:
    """255 characters, from `!` to `~`."""
    key = "!~" * 127 + "k"
    first = upload(tenant, key=key)
    check_replay(upload(tenant, key=key), first)


def test_a_key_is_kept_as_a_digest_only(serve: Callable[..., Served], logged: list[MutableMapping[str, Any]]) -> None:
    """Neither the database's files nor the log hold a key."""
    served = serve()
    tenant, key = served.tenant(), "visible-nowhere-4711"
    for content in (LINE, LINE, LINE * 2):
        upload(tenant, content, key=key)
    served.idle()
    held = b"".join(path.read_bytes() for path in served.folder.parent.glob("batchmill.sqlite3*"))
    assert tenant.id.encode() in held
    assert key.encode() not in held
    assert key not in str(logged)


class Slow:
    """An upload with a key that is sent in parts."""

    def __init__(self, tenant: Tenant) -> None:
        content_type, self._left = form(BATCH, file_part(LINE))
        self._connection = socket.create_connection(("127.0.0.1", tenant.served.port))
        head = (
            f"POST /v1/files HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {tenant.key}\r\nIdempotency-Key: {KEY}\r\n"
            f"Content-Type: {content_type}\r\nContent-Length: {len(self._left)}\r\nExpect: 100-continue\r\n"
            "Connection: close\r\n\r\n"
        )
        self._connection.sendall(head.encode())
        assert self._connection.recv(100).startswith(b"HTTP/1.1 100")  # it is running

    def send(self, size: int) -> None:
        """Send so many bytes."""
        self._connection.sendall(self._left[:size])
        self._left = self._left[size:]

    def end(self) -> bytes:
        """Send the rest, and return the whole answer."""
        self._connection.sendall(self._left)
        with self._connection, self._connection.makefile("rb") as stream:
            return stream.read()


def leased_until(tenant: Tenant) -> float:
    """Return when the lease of the organisation's one running call ends."""
    mine = select(replay.c.lease_until).where(replay.c.organisation_id == tenant.id, replay.c.answer.is_(None))
    return float(tenant.served.rows(lambda tx: tx.connection.execute(mine).scalar_one()))


def test_a_key_whose_call_is_running_is_a_409(tenant: Tenant) -> None:
    """The client is told to try again, and gets the answer once there is one."""
    slow = Slow(tenant)
    refused = upload(tenant, key=KEY)
    assert refused.error == (409, "conflict_error", None, "idempotency_conflict")
    assert refused.headers["x-should-retry"] == "true"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    first = slow.end()
    assert first.startswith(b"HTTP/1.1 200 ")
    again = upload(tenant, key=KEY)
    assert again.headers["x-idempotent-replay"] == "true"
    assert first.endswith(again.body)
    assert files(tenant) == 1


def test_a_call_that_went_away_frees_its_key(tenant: Tenant) -> None:
    """When the connection ends within an upload, the next try is the first."""
    slow = Slow(tenant)
    slow._connection.close()  # as a client does that has timed out
    tenant.served.idle()
    check_new(upload(tenant, key=KEY))


def test_an_upload_that_moves_holds_its_key(tenant: Tenant) -> None:
    """However long it takes, its lease is renewed while bytes arrive."""
    slow, clock = Slow(tenant), tenant.served.clock
    for _ in range(3):
        clock.uptime += 40
        until = leased_until(tenant)
        slow.send(10)
        while leased_until(tenant) == until:  # the server has not read them yet
            pass
        assert upload(tenant, key=KEY).status == 409
    assert slow.end().startswith(b"HTTP/1.1 200 ")


def test_an_upload_that_stands_still_loses_its_key(tenant: Tenant) -> None:
    """After a minute another call takes the key; the late one then gets the other's answer, and there is one File."""
    slow = Slow(tenant)
    tenant.served.clock.uptime += 61
    taken = upload(tenant, key=KEY)
    check_new(taken)
    late = slow.end()
    assert b"x-idempotent-replay: true" in late
    assert late.endswith(taken.body)
    assert files(tenant) == 1


def test_a_process_that_died_does_not_hold_its_key(tenant: Tenant) -> None:
    """What it left behind is a 409 until its lease has lapsed, and then nothing."""
    file_id = tenant.upload()["id"]
    dead = Call(
        id=mint_id("replay", 1),
        organisation_id=tenant.id,
        caller="c",
        route="batches",
        key_digest=hashlib.sha256(KEY.encode()).hexdigest(),
        retries=0,
    )
    expires_at = int(tenant.served.clock.now()) + 86_400
    tenant.served.rows(lambda tx: insert_running(tx, call=dead, expires_at=expires_at, lease=60.0))
    assert create(tenant, file_id, key=KEY).headers["x-should-retry"] == "true"
    tenant.served.clock.uptime += 61
    check_new(create(tenant, file_id, key=KEY))


# ---- what is kept, and where


@pytest.mark.parametrize("key", [None, KEY])
def test_a_restart_between_the_tries_changes_nothing(serve: Callable[..., Served], key: str | None) -> None:
    """Another process gives the first one's answers."""
    before = serve()
    tenant = before.tenant()
    first = upload(tenant, retries=0, key=key)
    batch = create(tenant, first.json["id"], retries=0, key=key)
    before.close()
    after = replace(tenant, served=serve())
    check_replay(create(after, first.json["id"], retries=1, key=key), batch)
    assert batches(after) == 1
    if key is not None:
        check_replay(upload(after, retries=1, key=key), first)


@pytest.mark.parametrize("key", [None, KEY])
def test_no_batch_is_made_without_its_record(serve: Callable[..., Served], key: str | None) -> None:
    """Where the record cannot be written, there is no batch and no reference either, and the next try makes both."""
    served = serve()
    tenant = served.tenant()
    file_id = tenant.upload()["id"]
    broken = "CREATE TRIGGER broken BEFORE INSERT ON replay BEGIN SELECT RAISE(ABORT, 'broken'); END"
    served.rows(lambda tx: tx.connection.exec_driver_sql(broken))
    assert create(tenant, file_id, retries=0, key=key).status == 500
    assert batches(tenant) == 0
    assert list(tenant.blobs().values()) == [("ready", 1)]
    served.rows(lambda tx: tx.connection.exec_driver_sql("DROP TRIGGER broken"))
    check_new(create(tenant, file_id, retries=1, key=key))
    assert batches(tenant) == 1


def test_a_read_goes_on_where_nothing_can_be_written(
    serve: Callable[..., Served], logged: list[MutableMapping[str, Any]]
) -> None:
    """That a client knows a File is then not noted, which is logged; the File is read all the same."""
    served = serve()
    tenant = served.tenant()
    file_id = upload(tenant, retries=0).json["id"]
    served.rows(lambda tx: tx.connection.exec_driver_sql("PRAGMA query_only=ON"))
    assert tenant.call("GET", f"/v1/files/{file_id}").status == 200
    assert [entry["event"] for entry in logged] == ["an answer that arrived could not be noted"]


@pytest.mark.parametrize("served", ["sqlite+disk"], indirect=True)  # its loop, its file or its full disk
async def test_a_read_goes_on_where_the_disk_is_full(tenant: Tenant, logged: list[MutableMapping[str, Any]]) -> None:
    """The same where there is no room for it."""
    file_id = (await asyncio.to_thread(upload, tenant, retries=0)).json["id"]
    full = FaultyDatabase(tenant.served.database)
    full.fill()
    replays = Replays(database=full, clock=tenant.served.clock, limits=KIMI)
    await replays.arrived(Request({"type": "http", "state": {"caller": key_digest(tenant.key)}}), file_id)
    assert [entry["event"] for entry in logged] == ["an answer that arrived could not be noted"]
