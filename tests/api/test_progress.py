"""How far a batch is, over HTTP: once, and as events."""

import asyncio
import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace

import pytest

from api.served import Served, Tenant
from api.test_batches import move
from batchmill.spec.groups import ErrorGroup
from batchmill.spec.limits import KIMI
from batchmill.spec.objects import Usage
from batchmill.spec.progress import Errors, Share
from batchmill.spec.states import Event, Status
from batchmill.store.database import Transaction
from batchmill.store.progress import add_errors, add_shares
from batchmill.store.tally import record_progress


def running(tenant: Tenant) -> str:
    """Make a batch in progress; return its id."""
    batch_id = str(tenant.create()["id"])
    move(tenant, batch_id, Status.VALIDATING, Event.ACCEPTED, total=100, open_slices=4)
    return batch_id


def commit(tenant: Tenant, batch_id: str) -> None:
    """Count a group commit: nine lines, and one that failed."""
    group = ErrorGroup("abc", 400, "too_long", "Too long: N")

    def statements(tx: Transaction) -> None:
        usage = Usage(input_tokens=300, output_tokens=100)
        record_progress(tx, batch_id=batch_id, completed=9, failed=1, closed_slices=0, usage=usage, retries=2)
        add_errors(
            tx,
            batch_id=batch_id,
            organisation_id=tenant.id,
            errors=[Errors(group=group, count=1, custom_ids=("row-7",), example="Too long: 9")],
        )
        share = Share(backend="gpu-1", lines=10, prompt_tokens=300, completion_tokens=100)
        add_shares(tx, [(batch_id, tenant.id, share)])

    tenant.served.rows(statements)


@contextmanager
def stream(tenant: Tenant, path: str, **headers: str) -> Iterator[http.client.HTTPResponse]:
    """Open a stream and leave it open."""
    connection = http.client.HTTPConnection("127.0.0.1", tenant.served.port, timeout=30)
    with closing(connection):
        connection.request("GET", path, headers={"Authorization": f"Bearer {tenant.key}"} | headers)
        response = connection.getresponse()
        assert response.status == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield response
    tenant.served.idle()


def event(response: http.client.HTTPResponse) -> tuple[str, dict[str, object]]:
    """Read one event."""
    fields = {}
    while (text := response.readline().decode().rstrip("\n")) or not fields:
        name, _, value = text.partition(": ")
        fields[name] = value
    return fields["event"], json.loads(fields["data"])


def tick(served: Served, *, streams: int = 1) -> None:
    """Let a second pass once so many streams sleep on the server's clock: one that still looks would not see it."""

    async def pass_by() -> None:
        async with asyncio.timeout(30):
            await served.clock.asleep(streams)
        await served.clock.advance(1.0)

    served.run(pass_by())


def test_how_far_a_batch_is(tenant: Tenant) -> None:
    """Counts, tokens, retries, shares and groups are those of the rows."""
    batch_id = running(tenant)
    commit(tenant, batch_id)
    told = tenant.call("GET", f"/v1/batches/{batch_id}/progress").json
    assert told["object"] == "batch.progress"
    assert told["batch_id"] == batch_id
    assert told["request_counts"] == {"completed": 9, "failed": 1, "total": 100}
    assert told["usage"] == tenant.call("GET", f"/v1/batches/{batch_id}").json["usage"]
    assert told["retries"] == 2
    assert told["backends"] == [{"backend": "gpu-1", "lines": 10, "prompt_tokens": 300, "completion_tokens": 100}]
    assert told["error_groups"] == [
        {
            "id": "abc",
            "status": 400,
            "code": "too_long",
            "message": "Too long: N",
            "example": "Too long: 9",
            "count": 1,
            "custom_ids": ["row-7"],
        }
    ]
    assert (told["eta"], told["margin"], told["errors_ungrouped"]) == (None, None, 0)


def test_every_batch_is_told_of(tenant: Tenant) -> None:
    """One that has not begun has a place in the queue; one that is final has none, and its deadline still."""
    batch_id = str(tenant.create()["id"])
    told = tenant.call("GET", f"/v1/batches/{batch_id}/progress").json
    assert (told["status"], type(told["queue_position"]), told["waiting"]) == ("validating", int, None)
    move(tenant, batch_id, Status.VALIDATING, Event.REJECTED, errors="[]")
    told = tenant.call("GET", f"/v1/batches/{batch_id}/progress").json
    assert (told["status"], told["queue_position"]) == ("failed", None)
    assert told["expires_at"] == tenant.call("GET", f"/v1/batches/{batch_id}").json["expires_at"]


def test_another_organisations_batch_is_not_there(tenant: Tenant, other: Tenant) -> None:
    """Neither as an answer nor as a stream, whose status is a 404 too."""
    batch_id = running(tenant)
    for path in (f"/v1/batches/{batch_id}/progress", f"/v1/batches/{batch_id}/progress?stream=true"):
        assert other.call("GET", path).error == (404, "resource_not_found_error", None, "resource_not_found")
        assert other.call("GET", path).json == other.call("GET", path.replace(batch_id, "batch_" + "0" * 46)).json


@pytest.mark.parametrize("stream", ["", "yes", "true&stream=true"])
def test_what_is_no_word_for_a_stream_is_refused(tenant: Tenant, stream: str) -> None:
    """It is true or false, once."""
    answer = tenant.call("GET", f"/v1/batches/{running(tenant)}/progress?stream={stream}")
    assert answer.error == (400, "invalid_request_error", "stream", "invalid_value")


@pytest.mark.parametrize(
    ("query", "headers"),
    [("?stream=true", {}), ("", {"Accept": "application/json;q=0.1, text/event-stream"})],
    ids=["query", "accept"],
)
def test_a_stream_tells_of_each_change_until_the_end(tenant: Tenant, query: str, headers: dict[str, str]) -> None:
    """At once, then when something has changed, and last that the batch is final: then the stream ends."""
    batch_id, served = running(tenant), tenant.served
    with stream(tenant, f"/v1/batches/{batch_id}/progress{query}", **headers) as response:
        first = event(response)
        assert first == (
            "progress",
            tenant.served.ask("GET", f"/v1/batches/{batch_id}/progress", Authorization=f"Bearer {tenant.key}").json,
        )
        tick(served)  # nothing has changed, and nothing is sent
        commit(tenant, batch_id)
        tick(served)
        assert event(response)[1]["request_counts"] == {"completed": 9, "failed": 1, "total": 100}
        move(tenant, batch_id, Status.IN_PROGRESS, Event.CANCEL)
        tick(served)
        assert event(response)[1]["status"] == "cancelling"
        move(tenant, batch_id, Status.CANCELLING, Event.SEALED)
        tick(served)
        name, told = event(response)
        assert (name, told["status"]) == ("progress", "cancelled")
        assert event(response) == ("end", {"status": "cancelled"})
        assert response.read() == b""


def test_a_final_batch_is_told_once(tenant: Tenant) -> None:
    """A stream of it ends at once; with `stream=false` an `Accept` for events gets none."""
    batch_id = str(tenant.create()["id"])
    move(tenant, batch_id, Status.VALIDATING, Event.REJECTED, errors="[]")
    path = f"/v1/batches/{batch_id}/progress"
    with stream(tenant, path, Accept="text/event-stream") as response:
        assert [event(response)[0], event(response)[0]] == ["progress", "end"]
        assert response.read() == b""
    assert tenant.call("GET", f"{path}?stream=false", Accept="text/event-stream").json["status"] == "failed"


def test_a_server_that_stops_waits_for_no_stream(serve: Callable[..., Served]) -> None:
    """Streams end within a second, in order, and without an `end`: a client opens them again."""
    tenant = serve().tenant()
    batch_id = running(tenant)
    with stream(tenant, f"/v1/batches/{batch_id}/progress?stream=true") as response:
        event(response)
        tenant.served.stop()
        tick(tenant.served)
        assert response.read() == b""


def test_a_key_that_is_revoked_ends_its_streams(serve: Callable[..., Served]) -> None:
    """Fifteen seconds later at most; that is no try of a bad key, of which an address has so many a minute."""
    served = serve(limits=replace(KIMI, failed_auth_per_minute=1))
    tenant = served.tenant()
    key = served.key(tenant.id, expires_at=int(served.clock.now()) + 10)
    path = f"/v1/batches/{running(tenant)}/progress?stream=true"
    with stream(tenant, path, Authorization=f"Bearer {key}") as response:
        event(response)
        for _ in range(15):
            tick(served)
        assert response.read() == b""
    assert served.call("GET", path, Authorization=f"Bearer {key}").status == 401


def test_a_hundred_streams_are_served_at_once(serve: Callable[..., Served]) -> None:
    """Each hears of the change a second later, and a client that goes away leaves nothing behind."""
    tenant = serve().tenant()
    batch_id, served = running(tenant), tenant.served
    connections = [http.client.HTTPConnection("127.0.0.1", served.port, timeout=30) for _ in range(100)]
    for connection in connections:
        connection.request(
            "GET", f"/v1/batches/{batch_id}/progress?stream=true", headers={"Authorization": f"Bearer {tenant.key}"}
        )
    responses = [connection.getresponse() for connection in connections]
    for response in responses:
        event(response)
    commit(tenant, batch_id)
    tick(served, streams=100)
    assert {str(event(response)[1]["request_counts"]) for response in responses} == {
        "{'completed': 9, 'failed': 1, 'total': 100}"
    }
    for response, connection in zip(responses, connections, strict=True):
        response.close()
        connection.close()
    served.idle()


def test_there_are_only_so_many_streams(serve: Callable[..., Served]) -> None:
    """Of one key, and of all: one more is told when to come again; who goes away makes room."""
    served = serve(limits=replace(KIMI, max_streams_per_key=2, max_streams=3))
    one, two = served.tenant(), served.tenant()
    paths = {tenant: f"/v1/batches/{running(tenant)}/progress?stream=true" for tenant in (one, two)}
    full = (429, "rate_limit_reached_error", None, "rate_limit_exceeded")
    with ExitStack() as opened:
        for tenant in (one, one, two):
            connection = opened.enter_context(closing(http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)))
            connection.request("GET", paths[tenant], headers={"Authorization": f"Bearer {tenant.key}"})
            event(connection.getresponse())
            if tenant is one:
                continue
            for asking in (one, two):
                refused = served.ask("GET", paths[asking], Authorization=f"Bearer {asking.key}")
                assert refused.error == full
                assert int(refused.headers["retry-after"]) > 0
            once = paths[two].replace("true", "false")
            assert served.ask("GET", once, Authorization=f"Bearer {two.key}").status == 200
    served.idle()
    with stream(two, paths[two]) as response:
        event(response)


def test_batches_are_listed_by_their_status(tenant: Tenant) -> None:
    """One or several, with commas; pages go on within them, and an unknown status is refused."""
    made = [running(tenant), str(tenant.create()["id"]), running(tenant), str(tenant.create()["id"])]
    move(tenant, made[3], Status.VALIDATING, Event.REJECTED, errors="[]")

    def listed(query: str) -> list[str]:
        return [batch["id"] for batch in tenant.call("GET", f"/v1/batches?{query}").json["data"]]

    assert listed("status=in_progress") == [made[2], made[0]]
    assert listed("status=validating,failed") == [made[3], made[1]]
    assert listed(f"status=in_progress&limit=1&after={made[2]}") == [made[0]]
    assert listed("status=expired") == []
    for wrong in ("status=", "status=done", "status=failed,", "status=failed&status=failed"):
        assert tenant.call("GET", f"/v1/batches?{wrong}").error == (
            400,
            "invalid_request_error",
            "status",
            "invalid_value",
        )
