"""Results as they come, requests by custom_id, and retries: over HTTP, beneath a worker that really runs."""

import asyncio
import json
import socket
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from api.running import Works, chat
from api.served import Answer, Served, Tenant
from batchmill.api import results as looking
from batchmill.api import retry as route
from batchmill.spec.limits import OPEN
from batchmill.store.database import Transaction
from batchmill.store.order import lock_parent
from bucket import bucket_of
from fakeclock import settle
from postgres import cluster_of
from storage import STORAGES

LINES = [
    chat("a", "hi"),
    chat("b", "fail 400 x"),
    b"",
    chat("c", "fail 422 y") + b"\r",
    chat("d", "fail 400 x"),
    chat("e", "hi"),
    chat("\\u0066", "fail 400 z"),
]
INPUT = b"\n".join(LINES)


@pytest.fixture(scope="module", params=STORAGES)
def api(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Run one API on each storage for these tests: what one of them validates is nobody else's."""
    folder = tmp_path_factory.mktemp("results")
    if request.param == "sqlite+disk":
        with closing(Served(folder, limits=OPEN)) as served:
            yield served
        return
    url = asyncio.run(cluster_of(request.config).new_database())
    blobs = bucket_of(request.config).blobs(folder)
    with closing(Served(folder, limits=OPEN, postgres=url, migrated=False, blobs=blobs)) as served:
        yield served


@pytest.fixture
def mine(api: Served) -> Tenant:
    """Make a new organisation."""
    return api.tenant()


@pytest.fixture
def works(api: Served) -> Works:
    """Begin to work."""
    return Works(api, OPEN)


def results(tenant: Tenant, batch_id: str, **query: object) -> Answer:
    """Ask for a page."""
    return tenant.call("GET", f"/v1/batches/{batch_id}/results?{urllib.parse.urlencode(query)}")


def walk(tenant: Tenant, batch_id: str, **query: object) -> list[Any]:
    """Read pages until nothing will come any more; return the lines, decoded."""
    found: list[Any] = []
    for _ in range(200):
        page = results(tenant, batch_id, **query)
        assert page.status == 200, page.body
        found += map(json.loads, page.body.splitlines())
        query["after"] = page.headers["x-next-cursor"]
        if page.headers["x-complete"] == "true":
            assert page.headers["x-has-more"] == "false"
            return found
    raise AssertionError("it never ended")


def ids(found: list[Any]) -> list[str]:
    """Return the custom_ids."""
    return [each["custom_id"] for each in found]


def done(tenant: Tenant, works: Works) -> dict[str, Any]:
    """Let a batch of six lines end, four of which fail; return it."""
    batch = tenant.create(tenant.upload(INPUT)["id"])
    works.run(batch["id"])
    return dict(tenant.call("GET", f"/v1/batches/{batch['id']}").json)


def retry(tenant: Tenant, batch_id: str, order: object = None, **headers: str) -> Answer:
    """Ask for a retry."""
    tenant.served.clock.time += 1
    body = b"" if order is None else json.dumps(order).encode()
    return tenant.call("POST", f"/v1/batches/{batch_id}/retry", body, Content_Type="application/json", **headers)


def content(tenant: Tenant, file_id: str) -> bytes:
    """Download a File."""
    return tenant.call("GET", f"/v1/files/{file_id}/content").body


def group(tenant: Tenant, batch_id: str, custom_id: str) -> str:
    """Return the error group of a failed line."""
    from batchmill.spec.groups import group_of  # noqa: PLC0415 - it is not what is tested

    (text,) = [t for t in results(tenant, batch_id).body.splitlines() if json.loads(t)["custom_id"] == custom_id]
    return group_of(text)[1].id


def test_pages_go_on_across_the_end_and_the_clearing(mine: Tenant, works: Works) -> None:
    """A cursor from before there is any result leads through all of them, once each; the lines are the files'."""
    batch = mine.create(mine.upload(INPUT)["id"])["id"]
    before = results(mine, batch)
    assert (before.status, before.body, before.headers["content-type"]) == (200, b"", "application/jsonl")
    assert (before.headers["x-has-more"], before.headers["x-complete"]) == ("false", "false")
    works.run(batch)
    first = results(mine, batch, after=before.headers["x-next-cursor"], limit=2)
    works.clear()
    rest = results(mine, batch, after=first.headers["x-next-cursor"])
    assert (rest.headers["x-has-more"], rest.headers["x-complete"]) == ("false", "true")
    facts = mine.call("GET", f"/v1/batches/{batch}").json
    files = content(mine, facts["output_file_id"]) + content(mine, facts["error_file_id"])
    assert sorted((first.body + rest.body).splitlines()) == sorted(files.splitlines())
    assert len(first.body.splitlines()) == 2
    assert sorted(ids(walk(mine, batch, status="failed", limit=1))) == ["b", "c", "d", "f"]
    assert sorted(ids(walk(mine, batch, status="succeeded"))) == ["a", "e"]
    assert sorted(ids(walk(mine, batch, error_group=group(mine, batch, "b")))) == ["b", "d"]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"after": "nonsense"}, "after"),
        ({"limit": 0}, "limit"),
        ({"limit": 10_001}, "limit"),
        ({"status": "done"}, "status"),
        ({"error_group": "x"}, "error_group"),
        ({"wait": 61}, "wait"),
        ({"follow": "yes"}, "follow"),
        ({"merged": "1"}, "merged"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(mine: Tenant, query: dict[str, object], param: str) -> None:
    """With the parameter that is wrong."""
    batch = mine.create()["id"]
    assert results(mine, batch, **query).error[:3] == (400, "invalid_request_error", param)


def test_results_are_their_organisations(mine: Tenant, api: Served, works: Works) -> None:
    """Another one gets the 404 of what is not there, on all three routes; and a cursor is of its own batch."""
    batch = done(mine, works)["id"]
    other = api.tenant()
    for path in ("results", "requests?custom_id=a"):
        assert other.call("GET", f"/v1/batches/{batch}/{path}").error[0] == 404
    assert retry(other, batch).error[0] == 404
    cursor = results(mine, batch).headers["x-next-cursor"]
    theirs = other.create()["id"]
    for merged in ("true", "false"):
        assert results(other, theirs, after=cursor, merged=merged).error[:3] == (400, "invalid_request_error", "after")


def test_a_wait_ends_when_something_comes(mine: Tenant, works: Works, api: Served) -> None:
    """It looks twice a second, and no longer than it was asked to."""
    batch = mine.create(mine.upload(INPUT)["id"])["id"]
    answers: list[Answer] = []
    asking = threading.Thread(target=lambda: answers.append(results(mine, batch, wait=60)))
    asking.start()
    works.run(batch)
    while asking.is_alive():
        api.run(api.clock.advance(0.5))
        asking.join(0.02)
    assert answers[0].body
    last = results(mine, batch, limit=100).headers["x-next-cursor"]
    assert results(mine, batch, after=last, wait=60).headers["x-complete"] == "true"


@pytest.mark.parametrize("as_events", [False, True])
def test_a_stream_follows_a_batch_to_its_end(mine: Tenant, works: Works, api: Served, *, as_events: bool) -> None:
    """As lines, or as events of which each names the cursor behind it, by which a client goes on."""
    batch = mine.create(mine.upload(INPUT)["id"])["id"]
    headers = {"Accept": "text/event-stream"} if as_events else {}
    answers: list[Answer] = []
    path = f"/v1/batches/{batch}/results?follow=true"
    following = threading.Thread(target=lambda: answers.append(mine.call("GET", path, **headers)))
    following.start()
    works.run(batch)
    while following.is_alive():
        api.run(api.clock.advance(0.5))
        following.join(0.02)
    page = results(mine, batch)
    if not as_events:
        assert answers[0].body == page.body
        return
    events = [dict(f.split(": ", 1) for f in e.splitlines()) for e in answers[0].body.decode().split("\n\n")[:-1]]
    assert [e["event"] for e in events] == ["result"] * 6 + ["end"]
    assert [e["data"].encode() for e in events[:-1]] == page.body.splitlines()
    assert events[-1]["id"] == page.headers["x-next-cursor"]
    resumed = mine.call("GET", path, Last_Event_ID=events[3]["id"], **headers)
    assert resumed.body.count(b"event: result") == 2


def test_results_whose_files_are_deleted_are_not_there(mine: Tenant, works: Works) -> None:
    """A page of none that is complete would be a lie."""
    batch = done(mine, works)
    mine.call("DELETE", f"/v1/files/{batch['output_file_id']}")
    assert sorted(ids(walk(mine, batch["id"]))) == ["b", "c", "d", "f"]
    mine.call("DELETE", f"/v1/files/{batch['error_file_id']}")
    assert results(mine, batch["id"]).error[0] == 404


def test_requests_are_found_by_their_custom_id(mine: Tenant, works: Works) -> None:
    """However an id is written; byte for byte, in the input's order, until the input is gone."""
    batch = done(mine, works)

    def ask(*custom_ids: str) -> Answer:
        query = urllib.parse.urlencode([("custom_id", each) for each in custom_ids])
        return mine.call("GET", f"/v1/batches/{batch['id']}/requests?{query}")

    assert ask("f", "nobody", "b").body == LINES[1] + b"\n" + LINES[6] + b"\n"
    assert ask("c").body == LINES[3].rstrip(b"\r") + b"\n"
    assert ask("fail", "雨").body == b""
    assert ask(*map(str, range(99)), "d").body == LINES[4] + b"\n"
    assert ask().error[:3] == (400, "invalid_request_error", "custom_id")
    assert ask(*map(str, range(101))).error[0] == 400
    works.clear()
    mine.call("DELETE", f"/v1/files/{batch['input_file_id']}")
    assert ask("a").error[0] == 404


def test_only_so_many_look_for_requests_at_a_time(
    mine: Tenant, works: Works, api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reads an input, as a retry does: one key has two at most, the next call is a 429 with a Retry-After."""
    batch = done(mine, works)["id"]
    path = f"/v1/batches/{batch}/requests?custom_id=b"
    begun, free = threading.Barrier(3, timeout=30), threading.Event()
    real: Callable[..., Any] = looking.find_requests

    def find(*given: Any, **of: Any) -> Any:  # noqa: ANN401 - as `find_requests`
        begun.wait()
        assert free.wait(30)
        return real(*given, **of)

    monkeypatch.setattr(looking, "find_requests", find)
    key = {"Authorization": f"Bearer {mine.key}"}
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(api.ask, "GET", path, **key) for _ in range(2)]
        begun.wait()
        refused = [api.ask("GET", path, **key), api.ask("POST", f"/v1/batches/{batch}/retry", b"", **key)]
        free.set()
        assert [each.result().body for each in running] == [LINES[1] + b"\n"] * 2
    assert [(each.status, each.headers["retry-after"]) for each in refused] == [(429, "5")] * 2
    monkeypatch.undo()
    assert mine.call("GET", path).status == retry(mine, batch).status == 200


def test_a_retry_copies_what_failed_byte_for_byte(mine: Tenant, works: Works) -> None:
    """All of it, in the input's order, as a File and a batch like the parent, which are one with it by merging."""
    batch = done(mine, works)
    works.clear()
    answer = retry(mine, batch["id"], {"metadata": {"try": "2"}})
    child = answer.json
    assert answer.status == 200, answer.body
    told = [child[name] for name in ("status", "parent_id", "endpoint", "completion_window", "metadata")]
    expected = ["validating", batch["id"], batch["endpoint"], batch["completion_window"], {"try": "2"}]
    assert told == expected
    copied = b"\n".join([LINES[1], LINES[3].rstrip(b"\r"), LINES[4], LINES[6], b""])
    assert content(mine, child["input_file_id"]) == copied
    file = mine.call("GET", f"/v1/files/{child['input_file_id']}").json
    assert (file["filename"], file["purpose"]) == (f"{batch['id']}_retry.jsonl", "batch")
    works.backend.moody = False
    works.run(child["id"])
    merged = walk(mine, batch["id"], merged="true", limit=1)
    assert sorted(ids(merged)) == ["a", "b", "c", "d", "e", "f"]
    assert not any(each["error"] or each["response"]["status_code"] != 200 for each in merged)
    again = retry(mine, batch["id"])
    assert again.error[0] == 400
    assert child["id"] in again.json["error"]["message"]
    assert retry(mine, child["id"]).error[0] == 400


def test_three_generations_are_read_as_one(mine: Tenant, works: Works) -> None:
    """A group first, then all the rest, then what failed again: each line once, where it stands last."""
    batch = done(mine, works)["id"]
    x = group(mine, batch, "b")
    one = retry(mine, batch, {"error_group": x}).json
    assert content(mine, one["input_file_id"]) == LINES[1] + b"\n" + LINES[4] + b"\n"
    assert retry(mine, batch, {"error_group": x}).error[0] == 400
    two = retry(mine, batch, {}).json
    assert content(mine, two["input_file_id"]).count(b"\n") == 2
    waiting = results(mine, batch, merged="true")
    assert sorted(ids([json.loads(t) for t in waiting.body.splitlines()])) == ["a", "e"]
    at = results(mine, batch, merged="true", after=waiting.headers["x-next-cursor"]).headers
    assert (at["x-has-more"], at["x-complete"]) == ("false", "false")
    works.run(one["id"])
    works.run(two["id"])
    works.backend.moody = False
    three = retry(mine, one["id"]).json
    works.run(three["id"])
    merged = walk(mine, batch, merged="true", after=at["x-next-cursor"], limit=1)
    assert sorted(ids(merged)) == ["b", "c", "d", "f"]
    codes = {each["custom_id"]: each["response"]["status_code"] for each in walk(mine, batch, merged="true")}
    assert codes == {"a": 200, "b": 200, "c": 422, "d": 200, "e": 200, "f": 400}
    assert sorted(ids(walk(mine, batch, merged="true", status="failed"))) == ["c", "f"]
    assert retry(mine, batch, {"error_group": "0" * 16}).error[0] == 400


def test_a_child_that_never_ran_leaves_the_lines_where_they_were(mine: Tenant, works: Works) -> None:
    """Cancelled before it was validated it has none: merged shows the parent's, and they can be retried again."""
    batch = done(mine, works)["id"]
    child = retry(mine, batch).json["id"]
    assert mine.call("POST", f"/v1/batches/{child}/cancel").status == 200
    works.run(child)
    assert sorted(ids(walk(mine, batch, merged="true", limit=2))) == ["a", "b", "c", "d", "e", "f"]
    second = retry(mine, batch).json["id"]
    works.backend.moody = False
    works.run(second)
    merged = walk(mine, batch, merged="true", limit=2)
    assert sorted(ids(merged)) == ["a", "b", "c", "d", "e", "f"]
    assert {each["response"]["status_code"] for each in merged} == {200}


def test_what_was_left_to_a_child_that_never_ran_is_not_lost(mine: Tenant, works: Works) -> None:
    """All else was retried while that child was alive: its lines are still the parent's, and can be retried."""
    batch = done(mine, works)["id"]
    x = group(mine, batch, "b")
    void = retry(mine, batch, {"error_group": x}).json["id"]
    others = retry(mine, batch).json["id"]
    assert mine.call("POST", f"/v1/batches/{void}/cancel").status == 200
    works.run(void)
    works.run(others)
    assert sorted(ids(walk(mine, batch, merged="true", limit=2))) == ["a", "b", "c", "d", "e", "f"]
    third = retry(mine, batch).json
    assert content(mine, third["input_file_id"]) == LINES[1] + b"\n" + LINES[4] + b"\n"
    works.run(third["id"])
    assert sorted(ids(walk(mine, batch, merged="true", limit=2))) == ["a", "b", "c", "d", "e", "f"]


def test_only_a_final_batch_with_its_files_is_retried(mine: Tenant, works: Works) -> None:
    """Anything else is a 400 that says why."""
    running = mine.create(mine.upload(INPUT)["id"])["id"]
    assert retry(mine, running).error[0] == 400
    works.run(running)
    assert retry(mine, running, {"error_group": "nonsense"}).error[:3] == (400, "invalid_request_error", "error_group")
    assert retry(mine, running, {"completion_window": 7}).error[0] == 400
    batch = mine.call("GET", f"/v1/batches/{running}").json
    mine.call("DELETE", f"/v1/files/{batch['input_file_id']}")
    refused = retry(mine, running)
    assert refused.error[0] == 400
    assert batch["input_file_id"] in refused.json["error"]["message"]


def test_a_retry_that_is_sent_again_makes_one_child(mine: Tenant, works: Works) -> None:
    """With an Idempotency-Key, and by the official client's count of its tries."""
    batch = done(mine, works)["id"]
    x, y = group(mine, batch, "b"), group(mine, batch, "c")
    for order, first, second in (
        ({"error_group": x}, {"Idempotency_Key": "k"}, {"Idempotency_Key": "k"}),
        ({"error_group": y}, {"X_Stainless_Retry_Count": "0"}, {"X_Stainless_Retry_Count": "1"}),
    ):
        made, again = retry(mine, batch, order, **first), retry(mine, batch, order, **second)
        assert (made.status, again.status) == (200, 200), again.body
        assert made.body == again.body
        assert again.headers["x-idempotent-replay"] == "true"
    mine.served.sweep()
    assert "writing" not in {state for state, _ in mine.blobs().values()}


def test_a_long_copy_holds_its_key(mine: Tenant, works: Works, api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call sent again is told to wait, however long that is; its child is made, though the first client is gone."""
    batch = done(mine, works)["id"]
    begun, free = threading.Event(), threading.Event()
    real: Callable[..., Any] = route.copy_failed

    def copy(**of: Any) -> Any:  # noqa: ANN401 - as `copy_failed`
        begun.set()
        assert free.wait(30)
        return real(**of)

    monkeypatch.setattr(route, "copy_failed", copy)
    path = f"/v1/batches/{batch}/retry"
    head = f"POST {path} HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {mine.key}\r\nIdempotency-Key: k\r\n"
    with socket.create_connection(("127.0.0.1", api.port)) as first:
        first.sendall(f"{head}Content-Length: 0\r\n\r\n".encode())
        assert begun.wait(30)
        for _ in range(5):
            while not api.clock.sleeping:  # until its key is held anew
                api.run(settle())
            api.run(api.clock.advance(20))
            again = api.ask("POST", path, b"", Authorization=f"Bearer {mine.key}", Idempotency_Key="k")
            assert again.error[::3] == (409, "idempotency_conflict")
            assert again.headers["x-should-retry"] == "true"
    free.set()
    api.idle()
    made = retry(mine, batch, Idempotency_Key="k")
    assert made.headers["x-idempotent-replay"] == "true"
    listed = mine.call("GET", "/v1/batches").json["data"]
    assert [each["id"] for each in listed if each["parent_id"]] == [made.json["id"]]


def test_of_two_retries_at_once_one_is_refused(mine: Tenant, works: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have copied the lines; only one may make its child, and the other names it and leaves no bytes."""
    batch = done(mine, works)["id"]
    both = threading.Barrier(2, timeout=30)
    real: Callable[..., Any] = route.copy_failed

    def copy(**of: Any) -> Any:  # noqa: ANN401 - as `copy_failed`
        try:
            return real(**of)
        finally:
            both.wait()

    monkeypatch.setattr(route, "copy_failed", copy)
    answers: list[Answer] = []
    asking = [threading.Thread(target=lambda: answers.append(retry(mine, batch))) for _ in range(2)]
    for each in asking:
        each.start()
    for each in asking:
        each.join()
    made, refused = sorted(answers, key=lambda answer: answer.status)
    assert (made.status, refused.status) == (200, 400)
    assert made.json["id"] in refused.json["error"]["message"]
    mine.served.sweep()
    assert sum(key.startswith("upload") for key in mine.blobs()) == 2


def test_a_parent_is_locked_for_its_child(mine: Tenant, api: Served, works: Works) -> None:
    """The statement is one that both databases take."""
    batch = done(mine, works)["id"]

    def statements(tx: Transaction) -> None:
        lock_parent(tx, batch_id=batch)

    api.run(api.database.write(statements))
