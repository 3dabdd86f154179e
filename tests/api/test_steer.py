"""Pause, resume, window and priority over HTTP."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import update

from api.served import Answer, Tenant
from batchmill.spec.states import STAMP, Status
from batchmill.spec.steer import STEERED, paused
from batchmill.store.tables import batch

ROUTES: dict[str, dict[str, object] | None] = {
    "pause": None,
    "resume": None,
    "window": {"completion_window": "48h"},
    "priority": {"priority": 7},
}


def steer(tenant: Tenant, batch_id: str, route: str, body: object = ...) -> Answer:
    """Steer a batch, with the route's usual body unless there is another."""
    value = ROUTES[route] if body is ... else body
    text = None if value is None else json.dumps(value).encode()
    return tenant.call("POST", f"/v1/batches/{batch_id}/{route}", text, Content_Type="application/json")


def put_in(tenant: Tenant, batch_id: str, status: Status) -> None:
    """Let a batch be in a status, whatever way led there."""
    there = {"status": status.value, STAMP[status]: int(tenant.served.clock.now())}
    tenant.served.rows(lambda tx: tx.connection.execute(update(batch).where(batch.c.id == batch_id).values(there)))


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("route", ROUTES)
def test_only_what_still_sends_is_steered(tenant: Tenant, route: str, status: Status) -> None:
    """A 200 in validating and in progress, with the batch as it is then; elsewhere a 400 that changes nothing."""
    made = tenant.create()
    put_in(tenant, made["id"], status)
    before = tenant.call("GET", f"/v1/batches/{made['id']}").json
    answer = steer(tenant, made["id"], route)
    after = tenant.call("GET", f"/v1/batches/{made['id']}").json
    if status not in STEERED:
        assert answer.error == (400, "invalid_request_error", None, "invalid_batch_state")
        assert after == before
        return
    assert (answer.status, answer.json) == (200, after)
    changed = {name: after[name] for name in after if after[name] != before[name]}
    now = int(tenant.served.clock.now())
    assert (
        changed
        == {
            "pause": {"paused_at": now},
            "resume": {},
            "window": {"completion_window": "48h", "expires_at": made["created_at"] + 48 * 3600},
            "priority": {"priority": 7},
        }[route]
    )


@pytest.mark.parametrize("route", ROUTES)
def test_said_again_it_changes_nothing(tenant: Tenant, route: str) -> None:
    """The second answer is the first, an hour later too."""
    batch_id = str(tenant.create()["id"])
    first = steer(tenant, batch_id, route)
    tenant.served.clock.time += 3600
    assert steer(tenant, batch_id, route).json == first.json


def test_a_pause_ends_with_a_resume(tenant: Tenant) -> None:
    """A batch tells since when it is paused, and the strict client reads it; the list tells the same."""
    batch_id = str(tenant.create()["id"])
    since = steer(tenant, batch_id, "pause").json["paused_at"]
    tenant.served.clock.time += 60
    shown = tenant.openai().batches.retrieve(batch_id)
    assert shown.model_extra is not None
    assert (shown.model_extra["paused_at"], shown.model_extra["priority"]) == (since, 0)
    assert tenant.call("GET", "/v1/batches").json["data"][0]["paused_at"] == since
    assert steer(tenant, batch_id, "resume").json["paused_at"] is None


def test_a_paused_batch_has_no_forecast(tenant: Tenant) -> None:
    """`progress` is there, and says nothing."""
    batch_id = str(tenant.create()["id"])
    put_in(tenant, batch_id, Status.IN_PROGRESS)
    assert set(steer(tenant, batch_id, "pause").json["progress"].values()) == {None}


def test_many_at_once_agree(tenant: Tenant) -> None:
    """Of twenty pauses at once one is the first, and all tell its time."""
    batch_id = str(tenant.create()["id"])
    with ThreadPoolExecutor(max_workers=20) as pool:
        answers = list(pool.map(lambda _: steer(tenant, batch_id, "pause"), range(20)))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.json["paused_at"] for answer in answers}) == 1


@pytest.mark.parametrize(
    ("route", "body", "param", "code"),
    [
        ("window", {}, "completion_window", "missing_required_parameter"),
        ("window", {"completion_window": 48}, "completion_window", "invalid_type"),
        ("window", {"completion_window": "8d"}, "completion_window", "invalid_value"),
        ("window", [], None, "invalid_type"),
        ("window", None, None, None),
        ("priority", {}, "priority", "missing_required_parameter"),
        ("priority", {"priority": "7"}, "priority", "invalid_type"),
        ("priority", {"priority": 101}, "priority", "invalid_value"),
        ("priority", None, None, None),
    ],
)
def test_a_body_with_something_wrong_names_it(
    tenant: Tenant, route: str, body: object, param: str | None, code: str | None
) -> None:
    """And changes nothing."""
    batch_id = str(tenant.create()["id"])
    before = tenant.call("GET", f"/v1/batches/{batch_id}").json
    assert steer(tenant, batch_id, route, body).error == (400, "invalid_request_error", param, code)
    assert tenant.call("GET", f"/v1/batches/{batch_id}").json == before


def test_a_window_ends_in_the_future(tenant: Tenant) -> None:
    """It counts from the batch's creation: one that would be over by now is refused, one of a second more is not."""
    made: dict[str, Any] = tenant.create(completion_window="3d")
    tenant.served.clock.time += 12 * 3600
    over = steer(tenant, made["id"], "window", {"completion_window": "12h"})
    assert over.error == (400, "invalid_request_error", "completion_window", "invalid_value")
    left = steer(tenant, made["id"], "window", {"completion_window": "13h"}).json
    assert (left["completion_window"], left["expires_at"]) == ("13h", made["created_at"] + 13 * 3600)


def test_a_new_window_of_a_paused_batch_is_said_with_it(tenant: Tenant) -> None:
    """The reason to wait names the end that stands."""
    made = tenant.create()
    steer(tenant, made["id"], "pause")
    ends = steer(tenant, made["id"], "window").json["expires_at"]
    said = tenant.served.rows(
        lambda tx: tx.connection.execute(batch.select().where(batch.c.id == made["id"])).one().waiting
    )
    assert said == paused(ends)
